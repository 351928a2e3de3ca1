"""Writes files completely or not at all, follows links and devices, and names files for people."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

STANDARD = "-"  # names standard output
_STREAMS = {1: "stdout", 2: "stderr"}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|\d+))/fd/(\d+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(path: str | os.PathLike[str]) -> str:
    """The name of a file as text that any UTF-8 file and any terminal takes: bytes that are not UTF-8 are escaped.

    >>> shown(os.fsdecode(b"M\\xfcller.png")), shown("Müller.png")
    ('M\\\\xfcller.png', 'Müller.png')
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def on_screen(text: str, lines: bool = False) -> str:
    """A text without control characters, which a terminal would obey; in one line, or with its ``lines`` and tabs.

    >>> on_screen("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    controls = _CONTROL_IN_LINES if lines else _CONTROL
    return controls.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested too deeply.

    >>> parse_json('{"a": [1]}')
    {'a': [1]}
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def read_whole(path: Path) -> bytes:
    """The contents of a file.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, of which the end might never come.

    >>> read_whole(write_whole(folder / "a.json", "{}"))
    b'{}'
    """
    check_ends(path)
    return path.read_bytes()


def check_ends(path: Path) -> None:
    """Raise OSError for a pipe or a device, of which the end might never come."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))


def write_whole(path: Path, contents: str | bytes) -> Path:
    """Write a file completely or not at all; see ``write_together``."""
    write_together({path: contents})
    return path


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write files completely, or leave all of them as they were.

    A new file has the permissions of the umask, and one that exists keeps its own. What a symbolic link leads to is
    written; a hard link stays one. Devices, pipes and standard output (``/dev/stdout``, or ``-``) are written to.

    Args:
        contents: of each path; text is written as UTF-8.

    Raises:
        OSError: a file cannot be written.

    >>> write_together({folder / "a.json": "{}", folder / "b.png": b"..."})
    >>> sorted(path.name for path in folder.iterdir())
    ['a.json', 'b.png']
    """
    partials: dict[Path, Path] = {}  # by target
    direct: dict[Path, str | bytes] = {}
    try:
        for path, content in contents.items():
            target = Path(os.path.realpath(path))
            if not is_replaceable(path):
                direct[path] = content
            else:
                partials[target] = partial = target.with_name(f".{target.name[-200:]}.{os.getpid()}.partial")
                _create(partial, _bytes(content), target)
        for path, content in direct.items():
            _write_to(path, content)
        for target, partial in partials.items():
            os.replace(partial, target)
    finally:
        for partial in partials.values():
            with contextlib.suppress(OSError):
                partial.unlink()


def stream_of(path: str | os.PathLike[str]) -> int | None:
    """The number of this process's open file that a path means, such as 1 for ``-`` and ``/dev/stdout``; None for any
    other path."""
    text = os.fspath(path)
    if text == STANDARD:
        return 1
    if match := _DESCRIPTOR.fullmatch(text):
        return int(match[1])
    with contextlib.suppress(OSError):
        status = os.stat(text)
        for number in _STREAMS:
            with contextlib.suppress(OSError):
                if os.path.samestat(status, os.fstat(number)):
                    return number
    return None


def is_replaceable(path: Path) -> bool:
    """Whether a path is, or can become, a regular file with one name in a folder that can be written."""
    if stream_of(path) is not None:
        return False
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return True
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_nlink == 1
        and os.access(Path(os.path.realpath(path)).parent, os.W_OK)
    )


def is_regular(path: Path) -> bool:
    """Whether a path is a regular file, or does not exist and can become one."""
    try:
        return stream_of(path) is None and stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True


def check_writable(path: Path) -> None:
    """Raise OSError if a file cannot be written, as far as that can be known before; nothing is created."""
    if stream_of(path) is not None:
        return
    target = Path(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError):
        os.stat(target)  # raises for a name that is too long
    place = next(place for place in (target, *target.parents) if place.exists())
    code = None
    if place.is_dir() and place == target:
        code = errno.EISDIR
    elif not place.is_dir() and place != target:
        code = errno.ENOTDIR
    elif not os.access(place, os.W_OK):
        code = errno.EACCES
    if code is not None:
        raise OSError(code, os.strerror(code), str(path))


def inodes(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """Device and inode of each file, which tell whether two paths lead to the same one; missing files have none."""
    known = set()
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            known.add((status.st_dev, status.st_ino))
    return known


def is_running(process: str) -> bool:
    """Whether a text is the number of a running process, or no number.

    >>> is_running(str(os.getpid()))
    True
    """
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError, OverflowError):  # of another user
        return True
    return True


def _bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")


def _create(partial: Path, content: bytes, target: Path) -> None:
    """Write a new file to the disk with the permissions that ``target`` has or would get."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)  # a quota or a network's disk may refuse only now
    with contextlib.suppress(FileNotFoundError):
        os.chmod(partial, stat.S_IMODE(os.stat(target).st_mode))


def _write_to(path: Path, content: str | bytes) -> None:
    """Write to what a path means, without replacing it."""
    number = stream_of(path)
    if number in _STREAMS:
        stream = getattr(sys, _STREAMS[number])
        if isinstance(content, str):
            stream.write(content)  # in the terminal's encoding
        else:
            stream.flush()
            stream.buffer.write(content)
        stream.flush()
    elif number is not None:
        with os.fdopen(os.dup(number), "wb") as file:
            file.write(_bytes(content))
    elif is_regular(path):
        _overwrite(path, _bytes(content))
    else:
        with path.open("wb") as file:
            file.write(_bytes(content))


def _overwrite(path: Path, content: bytes) -> None:
    """Change a file's contents in its place; they are put back if that fails."""
    with path.open("r+b", buffering=0) as file:
        before = file.readall()
        try:
            _put(file, content)
        except OSError:
            _put(file, before)
            raise


def _put(file: FileIO, content: bytes) -> None:
    file.seek(0)
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    file.truncate(len(content))
