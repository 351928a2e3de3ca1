"""The kinds of trials, in files of related ones."""

from trials import checkpoints, damage, kills, signals

ALL = (checkpoints, damage, kills, signals)
