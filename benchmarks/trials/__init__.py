"""The kinds of trials, in files of related ones."""

ALL = ()
