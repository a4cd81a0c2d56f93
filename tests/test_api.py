"""A classifier from Python: what is given to it."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from dcube.api import DCube
from dcube.errors import InputError
from dcube.runs import Run
from tiny import tiny_predictor


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> DCube:
    """Trained on images of 8 bits."""
    monkeypatch.setattr("dcube.stages.load", lambda run, device: tiny_predictor())
    return DCube(cast(Run, None), "cpu")


def write(path: Path, kind: type = np.uint8) -> str:
    Image.fromarray(np.arange(32 * 32).reshape(32, 32).astype(kind)).save(path)
    return str(path)


def test_deeper_files_are_refused_as_deeper_arrays_are(model: DCube, tmp_path: Path) -> None:
    plain, deep = write(tmp_path / "plain.png"), write(tmp_path / "deep.png", np.uint16)
    assert model.predict_proba([plain]).shape == (1, 3)
    with pytest.raises(InputError, match="deep.png has 16 bits per value, but the training images had 8"):
        model.predict_proba([plain, deep])
    with pytest.raises(InputError, match="raw pixels, for this run uint8, not uint16"):
        model.predict_proba([np.asarray(Image.open(deep))])
