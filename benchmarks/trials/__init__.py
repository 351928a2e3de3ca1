"""The kinds of trials, in files of related ones."""

from trials import predicting, wrong_input

ALL = (predicting, wrong_input)
