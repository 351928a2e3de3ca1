"""The command line: ``multilevel COMMAND ...``, one file per command."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from multilevel.commands.overview import COMMANDS, overview
from multilevel.runs.distributed import launched
from multilevel.runs.exit_status import exit_status
from multilevel.solvers.errors import MultilevelError
from multilevel.solvers.extensions import check_folders
from multilevel.solvers.extras import needing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; wrong input ends in one line on standard error and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words[0] if words else "help"
    setting = {"train": "resume=RUN", "study": "resume=FOLDER"}.get(command)
    after = f"{setting} continues from the last checkpoint" if setting else "can be run again"
    return exit_status(lambda: _run(words), f"multilevel {command} {after}")


def _run(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"multilevel {version('multilevel')}")
        return 0
    command, arguments = words[0], words[1:]
    if command not in COMMANDS:
        raise MultilevelError(f"unknown command {command!r}; the commands are {', '.join(COMMANDS)}")
    with needing("recipes", f"multilevel {command}"):
        if "--help" in arguments or "-h" in arguments:
            help_for = importlib.import_module("multilevel.commands.help").help_for
            print(help_for(command, [argument for argument in arguments if "=" in argument]))
            return 0
        check_folders()
        if launched() and command != "train":
            raise MultilevelError(f"torchrun works only with multilevel train; run multilevel {command} without it")
        return importlib.import_module(f"multilevel.{COMMANDS[command]}").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
