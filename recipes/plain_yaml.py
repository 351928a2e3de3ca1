"""Reads configurations that runs and studies have stored, which may be a stranger's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from multilevel.solvers import MultilevelError

LARGEST = 1 << 20  # bytes
DEEPEST = 30  # nested values
_OPENING = (yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken, yaml.FlowMappingStartToken)
_OPENING += (yaml.FlowSequenceStartToken,)  # type: ignore[assignment]
_RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)  # ${NAME:ARGUMENT}; a name may itself be a reference
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def read_yaml(path: Path) -> DictConfig:
    """Read a stored configuration.

    It has neither aliases nor deep nesting, since a short file could otherwise fill the memory, and refers to nothing
    but its own settings: ``${oc.env:NAME}`` would read an environment variable.

    Raises:
        MultilevelError: the file is broken, or is not such a configuration.

    >>> path = folder / "config.yaml"
    >>> path.parent.mkdir()
    >>> _ = path.write_text("steps: 3")
    >>> read_yaml(path).steps
    3
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST} bytes")
        text = content.decode()
        _check_plain(text)
        config = OmegaConf.create(text)
        _check_references(OmegaConf.to_container(config, resolve=False))
    except Exception as error:  # the parser raises errors of many kinds
        raise MultilevelError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig):
        raise MultilevelError(f"{path} cannot be read: it holds no settings")
    return config


def _check_references(value: Any) -> None:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_references(item)
    elif isinstance(value, str) and _RESOLVER.search(value):
        raise ValueError(f"{value} refers to something other than the file's own settings")


def _check_plain(text: str) -> None:
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > DEEPEST:
            raise ValueError(f"its values are nested more than {DEEPEST} deep")
        if isinstance(token, yaml.AliasToken):
            raise ValueError(f"it has an alias, *{token.value}, which no version writes")
