"""Ends a command with one line on standard error and an exit status for the kind of error."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable

from multilevel.problems.errors import ReplicaError
from multilevel.runs.distributed import first_here
from multilevel.runs.screen import plain_screen
from multilevel.runs.stopping import interrupting
from multilevel.solvers.errors import DataError, MultilevelError
from multilevel.solvers.files import on_screen, shown

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk is full, or the user's quota or limit
WRONG, INTERRUPTED = 2, 130


@plain_screen()
def exit_status(command: Callable[[], int | None], resumed: str) -> int:
    """Run a command and return its exit status, or 0 if it returns none; 2 for an error that the user can fix, such as
    a file that cannot be read or written, 128 + the signal's number after a signal, including SIGPIPE (141) when
    nothing reads standard output any more.

    Args:
        command: the function to run.
        resumed: how to resume after an interruption.
    """
    try:
        with interrupting():
            status = command() or 0
        sys.stdout.flush()  # flush here, where an error can still be reported
        return status
    except MultilevelError as error:
        if first_here() or isinstance(error, DataError | ReplicaError):
            print(f"multilevel: {on_screen(' '.join(str(error).split()))}", file=sys.stderr)
        return WRONG
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard what is left to write
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{on_screen(shown(error.filename))}: " if isinstance(error.filename, str) else ""
        remedy = f": free some space; saved files are intact, and {resumed}" if error.errno in FULL else ""
        print(f"multilevel: {where}{error.strerror}{remedy}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt as stop:
        if first_here():
            print(f"multilevel: {stop if stop.args else f'stopped; {resumed}'}", file=sys.stderr)
        return getattr(stop, "status", INTERRUPTED)
