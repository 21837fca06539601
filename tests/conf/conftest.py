import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def train_script():
    """The file train.py as a module."""
    spec = importlib.util.spec_from_file_location("train", Path(__file__).parents[2] / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
