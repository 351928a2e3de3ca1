"""Waiting for a run that a test has started."""

import time


def wait_for(process, path, lines=20):
    """Until a file of a run has so many lines, the run still going on."""
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text().count("\n") >= lines):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
