"""The kinds of trials, in files of related ones."""

from trials import checkpoints, damage, disks, kills, signals, strangers

ALL = (checkpoints, damage, disks, kills, signals, strangers)
