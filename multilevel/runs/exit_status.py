"""The end of a command: one line on standard error, and an exit status for the kind of error."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable

from multilevel.runs.distributed import first_here
from multilevel.problems.errors import ReplicaError
from multilevel.solvers.errors import DataError, MultilevelError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no place on the disk, or in one's share of it
WRONG, INTERRUPTED = 2, 130


def exit_status(command: Callable[[], int | None], resumed: str) -> int:
    """A command's own status, or 0 where it has none; 2 for what a user can mend, 128 + its number for a signal, that
    of a pipe (141) where nobody reads standard output any more.

    Args:
        command: the function to run.
        resumed: how to resume after an interruption.
    """
    try:
        status = command() or 0
        sys.stdout.flush()  # here, and not after the last line that can say something
        return status
    except MultilevelError as error:
        if first_here() or isinstance(error, DataError | ReplicaError):
            print(f"multilevel: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write goes nowhere
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"multilevel: {error.strerror}: free some space; what was saved is intact, and {resumed}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt as stop:
        if first_here():
            print(f"multilevel: {stop if stop.args else f'stopped; {resumed}'}", file=sys.stderr)
        return getattr(stop, "status", INTERRUPTED)
