"""What a sceptic tries: the run's own images as others, folders in each other, data that were repaired."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_fit import done, metrics, refused, table, write_image, write_scans


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("odd") / "scans", 9)


@pytest.fixture(scope="module")
def run(scans: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    out = tmp_path_factory.mktemp("run") / "run"
    done("fit", scans, "--out", out, "--recipe", recipe, "--no-test")
    return out


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_own_images_are_no_outside_set(split: str, run: Path, scans: Path, recipe: Path, tmp_path: Path) -> None:
    other = write_scans(tmp_path / "other", 6, seed=3)
    rows = [row for row in table(run / "split.csv") if row["split"] == split]
    shutil.copy(scans / rows[0]["path"], other / rows[0]["label"] / "copy.png")
    before = {path.name for path in (run / "evaluation").iterdir()}
    sentence = refused("evaluate", run, "--data", other)
    assert "1 of 13 images" in sentence and "are the run's own, such as" in sentence and "copy.png" in sentence
    done("prepare", other, "--out", tmp_path / "store", "--recipe", recipe)
    assert "are the run's own" in refused("evaluate", run, "--data", tmp_path / "store")
    assert {path.name for path in (run / "evaluation").iterdir()} == before
    (other / rows[0]["label"] / "copy.png").unlink()
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    done("evaluate", moved, "--data", other)
    assert metrics(moved, "external-other")["n"] == 12


def test_what_was_trained_on_is_known_without_the_prepared_images(
    run: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    text = (moved / "data").read_text().replace("stores", "gone")
    (moved / "data").write_text(text)
    other = write_scans(tmp_path / "other", 6, seed=3)
    [first, *_] = [row for row in table(run / "split.csv") if row["split"] == "train"]
    shutil.copy(scans / first["path"], other / first["label"] / "copy.png")
    assert "1 of 13 images" in refused("evaluate", moved, "--data", other)


def test_a_place_inside_the_images_folder(scans: Path, recipe: Path) -> None:
    for verb in (("fit", scans), ("prepare", scans), ("diffuse", scans)):
        assert "lies inside the images' folder" in refused(*verb, "--out", scans / "runs/a", "--recipe", recipe)
    assert not (scans / "runs").exists()


def test_a_refusal_of_the_data_leaves_nothing_in_the_way(recipe: Path, tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "scans", 9)
    write_image(scans / "rare/0.png", 77)
    fit = ("fit", scans, "--out", tmp_path / "run", "--recipe", recipe, "--no-test", "--max-minutes", 0)
    assert "'rare'" in refused(*fit)
    for number in range(1, 6):
        write_image(scans / f"rare/{number}.png", 77 + number)
    done(*fit)
    write_image(scans / "rare/6.png", 90)
    assert "as it was then" in refused(*fit)


def test_images_of_two_depths_are_told_and_none_of_them_is_strange(recipe: Path, tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "scans", 9)
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 4000, (24, 24)).astype(np.uint16)
        Image.fromarray(pixels).save(scans / f"malignant/{number:03}.png")
    fit = ("fit", scans, "--out", tmp_path / "run", "--recipe", recipe, "--no-test", "--max-minutes", 0)
    assert "9 of 18 images have more than 8 bits per value and the others 8" in done(*fit).stdout
    done("predict", tmp_path / "run", scans / "benign", "--out", tmp_path / "rows.csv")
    assert not [row for row in table(tmp_path / "rows.csv") if "bits" in row["warning"]]
    assert "9 of 18 images have more than 8 bits" in done("audit", scans, "--recipe", recipe).stdout
