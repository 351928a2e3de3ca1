"""The kinds of trials, in files of related ones."""

from trials import checkpoints, damage, disks, kills, signals

ALL = (checkpoints, damage, disks, kills, signals)
