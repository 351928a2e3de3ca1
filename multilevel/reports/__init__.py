"""Texts, intervals, thresholds and costs of the reports, for ``multilevel inspect`` and ``multilevel study``."""
