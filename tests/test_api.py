"""A classifier from Python: what is given to it."""

import json
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


def test_paths_in_whatever_holds_them(model: DCube, tmp_path: Path) -> None:
    name = write(tmp_path / "1.png")
    [expected] = model.predict_proba([name])
    for paths in ([Path(name)], np.array([name]), np.array([name.encode()]), np.array([Path(name)], dtype=object)):
        np.testing.assert_array_equal(model.predict_proba(paths), [expected])
        [row] = model.predict_files(paths)  # type: ignore[arg-type]
        assert row["path"] == name and type(row["path"]) is str
    rows = model.explain([Path(name)], tmp_path / "why", grid=3)
    assert rows == json.loads((tmp_path / "why" / "explanations.json").read_text()) and rows[0]["path"] == name


def test_no_paths_and_one_in_place_of_a_list(model: DCube, tmp_path: Path) -> None:
    for none in ([], np.array([], dtype=str)):
        assert model.predict_proba(none).shape == (0, 3) and model.predict_files(none) == []  # type: ignore[arg-type]
        with pytest.raises(InputError, match="no image to explain"):
            model.explain(none, tmp_path / "why")  # type: ignore[arg-type]
    for one in ("1.png", b"1.png", Path("1.png"), np.array("1.png")):
        for ask in (model.predict_proba, model.predict_files, lambda paths: model.explain(paths, tmp_path / "why")):
            with pytest.raises(InputError, match="into a list"):
                ask(one)
    with pytest.raises(InputError, match="takes a list of paths"):
        model.predict_files([7])  # type: ignore[list-item]
    assert not (tmp_path / "why").exists()
