"""Ends a command with one line on standard error and an exit status for the kind of error."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable

from multilevel.problems.errors import ReplicaError
from multilevel.runs.distributed import first_here
from multilevel.solvers.errors import DataError, MultilevelError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk is full, or the user's quota
WRONG, INTERRUPTED = 2, 130


def exit_status(command: Callable[[], int | None], resumed: str) -> int:
    """Run a command and return its exit status, or 0 if it returns none; 2 for an error that the user can fix, 128 +
    the signal's number after a signal, including SIGPIPE (141) when nothing reads standard output any more.

    Args:
        command: the function to run.
        resumed: how to resume after an interruption.
    """
    try:
        status = command() or 0
        sys.stdout.flush()  # flush here, where an error can still be reported
        return status
    except MultilevelError as error:
        if first_here() or isinstance(error, DataError | ReplicaError):
            print(f"multilevel: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard what is left to write
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"multilevel: {error.strerror}: free some space; saved files are intact, and {resumed}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt as stop:
        if first_here():
            print(f"multilevel: {stop if stop.args else f'stopped; {resumed}'}", file=sys.stderr)
        return getattr(stop, "status", INTERRUPTED)
