"""The kinds of trials, in files of related ones."""

from trials import checkpoints, damage, disks, kills, predicting, ranks, signals, strangers, together, wrong_input

ALL = (kills, signals, checkpoints, damage, disks, strangers, predicting, wrong_input, together, ranks)
