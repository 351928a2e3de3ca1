"""The kinds of trials, in files of related ones."""

from trials import predicting, ranks, together, wrong_input

ALL = (predicting, ranks, together, wrong_input)
