"""The kinds of trials, in files of related ones."""

from trials import kills

ALL = (kills,)
