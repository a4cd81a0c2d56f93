"""`dcube sample`: images as files, from step 1 alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_fit import CLASSES, contents, done, refused

import dcube
from dcube.samples import _folders


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.fixture(scope="module")
def step1(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has nothing but step 1."""
    run = Path(shutil.copytree(fitted, tmp_path_factory.mktemp("step1") / "run"))
    for gone in ("classifier", "evaluation"):
        shutil.rmtree(run / gone)
    return run


def test_images_of_a_class_from_step_1_alone(step1: Path, fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert str(out / "grid.png") in done("sample", step1, "--class", "normal", "-n", 9, "--out", out).stdout
    names = ["grid.png", "samples.json", *(f"normal/{i:05d}.png" for i in range(9))]
    assert sorted(contents(out)) == sorted(names)
    drawn = np.stack([pixels(out / "normal" / f"{i:05d}.png") for i in range(9)])
    expected = dcube.load(fitted, "cpu").sample("normal", 9, seed=0)
    assert drawn.shape == (9, 16, 16) and np.abs(drawn - 255 * expected[:, 0]).max() <= 1
    grid = pixels(out / "grid.png")
    assert grid.shape == (32, 128) and np.array_equal(grid[:16, 16:32], drawn[1])
    assert np.array_equal(grid[16:, :16], drawn[8]) and not grid[16:, 16:].any()


def test_an_image_depends_on_its_number_and_the_seed_alone(step1: Path, tmp_path: Path) -> None:
    few, many, other = (tmp_path / name for name in ("few", "many", "other"))
    done("sample", step1, "-n", 2, "--out", few)
    done("sample", step1, "-n", 35, "--out", many)
    done("sample", step1, "-n", 2, "--seed", 1, "--out", other)
    for name in CLASSES:
        one, more = pixels(few / name / "00001.png"), pixels(many / name / "00001.png")
        assert np.abs(one - more).max() <= 1
        assert np.abs(one - pixels(other / name / "00001.png")).max() > 1
        assert len(list((many / name).iterdir())) == 35
        assert np.abs(pixels(many / name / "00033.png") - pixels(many / name / "00001.png")).max() > 1
    assert pixels(few / "grid.png").shape == (48, 32), "a row per class"
    before = contents(few)
    (few / "benign/00001.png").unlink()
    done("sample", step1, "-n", 2, "--out", few)
    assert contents(few) == before, "a repeated command goes on"


def test_bad_input(step1: Path, tmp_path: Path) -> None:
    assert "no class 'cyst'" in refused("sample", step1, "--class", "cyst", "--out", tmp_path / "out")
    assert "-n" in refused("sample", step1, "-n", 0, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done("sample", step1, "-n", 1, "--out", tmp_path / "out")
    assert "another model or seed" in refused("sample", step1, "-n", 1, "--seed", 5, "--out", tmp_path / "out")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    assert "other files (a.txt)" in refused("sample", step1, "--out", tmp_path / "notes")
    assert "is a file" in refused("sample", step1, "--out", tmp_path / "notes" / "a.txt")
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(step1 / "experiment.yaml", half)
    assert f"`dcube diffuse {half}` makes it" in refused("sample", half, "--out", tmp_path / "none")


def test_folders_of_awkward_class_names() -> None:
    found = _folders(["a/b", "a:b", "..", "normal tissue"])
    assert found == {"a/b": "a_b-0", "a:b": "a_b-1", "..": "_", "normal tissue": "normal tissue"}
    assert json.loads(json.dumps(found)) == found
