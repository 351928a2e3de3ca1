"""The command line: ``multilevel COMMAND ...``, one file a command."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from multilevel.help import OVERVIEW, help_for
from multilevel.solvers.errors import MultilevelError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no place on the disk, or in one's share of it
COMMANDS = ("train", "compare", "study", "graph", "evaluate", "export", "predict", "monitor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; wrong input ends in one line on standard error and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except MultilevelError as error:
        print(f"multilevel: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"multilevel: {error.strerror}: make room, and resume: what was saved is whole", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if stop.args:
            print(f"multilevel: {stop}", file=sys.stderr)
            return getattr(stop, "status", 130)
        command = "study resume=FOLDER" if given[:1] == ["study"] else "train resume=RUN"
        print(f"multilevel: stopped; multilevel {command} goes on from the last checkpoint", file=sys.stderr)
        return 130


def _run(given: list[str]) -> int:
    if not given or given[0] in ("--help", "-h", "help"):
        print(OVERVIEW)
        return 0 if given else 2
    if given[0] == "--version":
        print(f"multilevel {version('multilevel')}")
        return 0
    command, arguments = given[0], given[1:]
    if command not in COMMANDS:
        raise MultilevelError(f"there is no command {command!r}; the commands are {', '.join(COMMANDS)}")
    if "--help" in arguments or "-h" in arguments:
        print(help_for(command))
        return 0
    return importlib.import_module(f"multilevel.{command}").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
