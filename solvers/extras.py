"""Optional packages: an error that says which extra of ``multilevel`` to install."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distributions, requires

from multilevel.solvers.errors import MultilevelError


class MissingExtraError(MultilevelError, ModuleNotFoundError):
    """Packages that only an extra installs are missing; the text names them and the extra."""


@contextmanager
def needing(extra: str, user: str) -> Iterator[None]:
    """Turn the failing import of an extra's package into one line.

    Args:
        extra: of ``multilevel``, as in ``pip install 'multilevel[recipes]'``.
        user: the command or package that needs it.

    Raises:
        MissingExtraError: a module was not found, and not all packages of the extra are installed.
    """
    try:
        yield
    except ModuleNotFoundError:
        missing = _missing_packages(extra)
        if not missing:
            raise
        packages = ", ".join(missing)
        raise MissingExtraError(f"{user} needs {packages}: pip install 'multilevel[{extra}]'") from None


def _missing_packages(extra: str) -> list[str]:
    """The packages of an extra that are not installed; none where ``multilevel`` is not installed itself."""
    try:
        declared = [line for line in requires("multilevel") or [] if f'extra == "{extra}"' in line]
    except PackageNotFoundError:
        return []
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in declared]
    return [name for name in names if not list(distributions(name=name))]
