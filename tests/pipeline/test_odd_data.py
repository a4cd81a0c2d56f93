"""What a sceptic tries: the run's own images as others, folders in each other, data that were repaired."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from tiny_fit import done, metrics, refused, table, write_image, write_scans

from dcube.training.state import load_weights


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


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_own_images_are_known_without_the_prepared_ones(split: str, run: Path, scans: Path, tmp_path: Path) -> None:
    """As where a run folder was moved to another computer."""
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    text = (moved / "data").read_text().replace("stores", "gone")
    (moved / "data").write_text(text)
    other = write_scans(tmp_path / "other", 6, seed=3)
    [first, *_] = [row for row in table(run / "split.csv") if row["split"] == split]
    copy = other / first["label"] / "copy.png"
    shutil.copy(scans / first["path"], copy)
    assert "1 of 13 images" in refused("evaluate", moved, "--data", other)
    weights = moved / "classifier/model.safetensors"
    tensors, about = load_weights(weights)
    del about["held_out"]  # as an older version wrote them
    save_file(tensors, weights, {name: json.dumps(value) for name, value in about.items()})
    if split == "train":
        assert "1 of 13 images" in refused("evaluate", moved, "--data", other)
    else:
        assert "its own validation or test images is not known" in done("evaluate", moved, "--data", other).stderr
        (moved / "data").write_text((run / "data").read_text())  # the prepared images are there
        assert "1 of 13 images" in refused("evaluate", moved, "--data", other)
        (moved / "data").write_text(json.dumps(json.loads((run / "data").read_text()) | {"key": "of others"}))
        assert "its own validation or test images is not known" in done("evaluate", moved, "--data", other).stderr


def test_a_class_in_two_forms_of_unicode(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of an older version, whose classes are as a Mac's archive wrote them."""
    scans = write_scans(tmp_path / "scans", 9, ("gutartig-a\u0308", "normal"))
    with monkeypatch.context() as older:
        for place in ("folders", "manifest"):
            older.setattr(f"dcube.data.{place}.same_text", str)
        done("fit", scans, "--out", tmp_path / "run", "--recipe", recipe, "--no-test")
    for number, label in enumerate(("gutartig-a\u0308", "gutartig-\u00e4")):
        other = write_scans(tmp_path / f"other-{number}", 6, (label, "normal"), seed=3)
        assert "external split: 12 images" in done("evaluate", tmp_path / "run", "--data", other).stdout


def test_copies_in_another_set_count_once(run: Path, tmp_path: Path) -> None:
    moved, once = Path(shutil.copytree(run, tmp_path / "moved")), write_scans(tmp_path / "once", 6, seed=3)
    thrice = Path(shutil.copytree(once, tmp_path / "thrice"))
    for path in sorted(thrice.rglob("*.png")):
        for name in ("a", "b"):
            shutil.copy(path, path.with_name(f"{path.stem}{name}.png"))
    done("evaluate", moved, "--data", once)
    assert "24 of 36 images are copies of others" in done("evaluate", moved, "--data", thrice).stderr
    one, three = metrics(moved, "external-once"), metrics(moved, "external-thrice")
    assert (one["copies"], three["copies"], one["groups"], three["groups"]) == (0, 24, 12, 12)
    for name in ("accuracy", "macro_f1"):
        assert three[name] == pytest.approx(one[name]), "no narrower interval"


def test_prepared_images_replaced_under_their_name_are_not_evaluated(recipe: Path, tmp_path: Path) -> None:
    """Labels were corrected and the images prepared again, at the same place."""
    scans, store, out = write_scans(tmp_path / "scans", 9), tmp_path / "store", tmp_path / "run"
    done("prepare", scans, "--out", store, "--recipe", recipe)
    done("fit", store, "--out", out, "--recipe", recipe, "--no-test")
    shutil.rmtree(store)
    one, other, *_ = sorted(path for path in scans.iterdir() if path.is_dir())
    [first, *_] = sorted(one.iterdir())
    [last, *_] = sorted(other.iterdir())
    for a, b in ((first, tmp_path / "kept"), (last, first), (tmp_path / "kept", last)):
        shutil.move(a, b)
    done("prepare", scans, "--out", store, "--recipe", recipe)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for verb in (("evaluate", out), ("evaluate", out, "--split", "val", "--again"), ("probe", out)):
        assert "are other ones than" in refused(*verb) and "--restart" in refused(*verb)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}.items() >= before.items()
    assert not (out / "evaluation/metrics.json").exists()
    done("fit", store, "--out", out, "--recipe", recipe, "--no-test", "--restart")


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
