"""Fixtures of all tests."""

import pytest
import torch


@pytest.fixture
def double_precision():
    """New tensors are float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def fresh_compiler():
    """What a test has compiled is forgotten after it."""
    yield
    torch.compiler.reset()
