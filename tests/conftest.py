"""Fixtures of all tests."""

from pathlib import Path

import pytest
import torch

from dcube.data.dataset import ImageData
from tiny import tiny_data

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """27 grey images of three classes, 32 px, in a real store."""
    return tiny_data(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An empty folder for a training."""
    return tmp_path / "run"
