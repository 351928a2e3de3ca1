"""Benchmarks are scripts that import each other by their file names."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def tiny():
    """Settings with which an iteration takes no time."""
    return """
    data.limit=60 data.batch_size=4 data.image_size=16 model=mini model.width=8 model.depth=1 model.heads=2
    model.decoder_width=8 model.decoder_depth=1 model.decoder_heads=2
    """.split()
