"""The masking network in an exported folder: a file that transformers does not read, for runs that start from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from multilevel.levels import MaskingNetwork
from multilevel.solvers.files import parse_json

MASKING = "masking.safetensors"
_SETTINGS = "mask"


def save_masking(network: MaskingNetwork, settings: Mapping[str, Any], path: Path) -> None:
    """Write the network's weights, with the run's settings ``mask.*`` as JSON in the file's metadata."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, path, metadata={_SETTINGS: json.dumps(dict(settings))})


def load_masking(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights and settings.

    Raises:
        OSError, SafetensorError, ValueError: the file cannot be read.
    """
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
        settings = parse_json((file.metadata() or {}).get(_SETTINGS, "{}"))
    return weights, settings
