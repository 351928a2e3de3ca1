"""Reports missing optional packages with the extra of ``multilevel`` to install."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distributions, requires

from multilevel.solvers.errors import MultilevelError


class MissingExtraError(MultilevelError, ModuleNotFoundError):
    """Packages of an extra are missing; the message names them and the extra."""


@contextmanager
def needing(extra: str, user: str) -> Iterator[None]:
    """Turn a failed import of an extra's package into a one-line error.

    Args:
        extra: an extra of ``multilevel``, as in ``pip install 'multilevel[recipes]'``.
        user: the command or package that needs it.

    Raises:
        MissingExtraError: a module was not found, and a package of the extra is not installed.
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
    """The packages of an extra that are not installed; none if ``multilevel`` itself is not installed."""
    try:
        declared = [line for line in requires("multilevel") or [] if f'extra == "{extra}"' in line]
    except PackageNotFoundError:
        return []
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in declared]
    return [name for name in names if not list(distributions(name=name))]
