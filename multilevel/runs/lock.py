"""One process at a time trains in a run folder."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from multilevel.runs.distributed import on_first_rank
from multilevel.solvers import SettingError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: dict[Path, int] = {}  # descriptors by folder, in the process that holds the lock


@contextlib.contextmanager
def only_process(setting: str, folder: Path) -> Iterator[None]:
    """A block in which no other process trains in a folder, which is created if it does not exist.

    The lock ends with the process, however that ends. With several ranks, rank 0 holds it.

    Args:
        setting: the setting that errors name.
        folder: the run's.

    Raises:
        SettingError: another process is in such a block, or the folder cannot be written.
    """
    on_first_rank(lambda: _acquire(setting, folder))
    try:
        yield
    finally:
        _release(folder)


def _acquire(setting: str, folder: Path) -> None:
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            if not _locked(descriptor, folder):
                holder = os.read(descriptor, 200).decode("ascii", "replace")
                os.close(descriptor)
                raise SettingError(setting, str(folder), f"a run that no other process trains: {holder} does")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # not one that its holder has just removed
                    break
            os.close(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode("ascii", "replace"))
    except OSError as error:
        raise SettingError(setting, str(folder), f"a folder that can be written ({error.strerror})") from error
    _held[folder] = descriptor


def _locked(descriptor: int, folder: Path) -> bool:
    """Lock an open file, or return False if another process has."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        print(f"{folder} is on a disk without locks: start no other process there", file=sys.stderr)
    return True


def _release(folder: Path) -> None:
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.unlink(folder / LOCK)
        os.close(descriptor)
