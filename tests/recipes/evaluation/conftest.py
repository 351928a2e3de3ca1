"""The digits, and what an evaluation of them takes, as fixtures."""

import digits as data
import pytest


@pytest.fixture(scope="session")
def digits():
    return data.digits()


@pytest.fixture(scope="session")
def setup():
    return data.setup
