"""`dcube explain`: pictures of what an answer hangs on, from a finished run."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_fit import CLASSES, cli, contents, done, refused, write_image

import dcube
from dcube import explanation


def test_pictures_and_their_numbers(fitted: Path, tmp_path: Path) -> None:
    paths = [write_image(tmp_path / "new" / name, seed) for seed, name in enumerate(("a/1.png", "b/1.png"))]
    out = tmp_path / "why"
    printed = done("explain", fitted, tmp_path / "new", "--out", out, "--grid", 6).stdout
    rows = json.loads((out / "explanations.json").read_text())
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert [row["picture"] for row in rows] == ["0001-1.png", "0002-1.png"]
    expected = dcube.load(fitted, "cpu").predict_proba(paths)
    for row, p in zip(rows, expected, strict=True):
        assert row["class"] == row["predicted"] == CLASSES[p.argmax()]
        assert row["probability"] == pytest.approx(p.max(), abs=1e-6) and np.shape(row["drop"]) == (6, 6)
        assert np.asarray(Image.open(out / row["picture"])).shape == (32, 64, 3)
    table = list(csv.DictReader(printed.splitlines()))
    assert [row["picture"] for row in table] == ["0001-1.png", "0002-1.png"] and "drop" not in table[0]
    before = contents(out)
    done("explain", fitted, tmp_path / "new", "--out", out, "--grid", 6)
    assert contents(out) == before


def test_earlier_pictures_make_way_and_odd_images_are_told(fitted: Path, tmp_path: Path) -> None:
    one, out = write_image(tmp_path / "1.png", 1), tmp_path / "why"
    deep = tmp_path / f"{'x' * 240}.png"
    Image.fromarray(np.full((24, 24), 4000, np.uint16)).save(deep)
    done("explain", fitted, one, deep, "--out", out, "--grid", 3)
    plain, odd = json.loads((out / "explanations.json").read_text())
    assert "16 bits per value" in odd["warning"] and "bits" not in plain["warning"]
    assert (out / odd["picture"]).is_file() and odd["picture"].startswith("0002-xxx")
    write_image(out / "0003-not-ours.png", 3)
    result = done("explain", fitted, deep, "--out", out, "--grid", 3)
    assert f"{deep}: 16 bits per value" in result.stderr
    [row] = json.loads((out / "explanations.json").read_text())
    assert {path.name for path in out.glob("*.png")} == {row["picture"], "0003-not-ours.png"}


def test_of_another_class(fitted: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "1.png", 0)
    for name in CLASSES:
        done("explain", fitted, path, "--out", tmp_path / "why", "--class", name, "--grid", 3)
        [row] = json.loads((tmp_path / "why" / "explanations.json").read_text())
        assert row["class"] == name


def test_interrupted_it_goes_on(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_image(tmp_path / "new" / f"{seed}.png", seed) for seed in range(2)]
    explain = ("explain", fitted, *paths, "--out", tmp_path / "why", "--grid", 3)
    save = explanation.save

    def stop(path: Path, pixels: np.ndarray) -> None:
        if path.name.startswith("0002"):
            raise KeyboardInterrupt
        save(path, pixels)

    monkeypatch.setattr(explanation, "save", stop)
    assert cli(*explain).exit_code == 130 and (tmp_path / "why" / "0001-0.png").is_file()
    monkeypatch.setattr(explanation, "save", save)
    done(*explain)
    assert len(json.loads((tmp_path / "why" / "explanations.json").read_text())) == 2


def test_bad_input(fitted: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "1.png", 0)
    explain = ("explain", fitted, path, "--out", tmp_path / "why")
    assert "no class 'cyst'; this run knows benign" in refused(*explain, "--class", "cyst")
    assert "Input should be greater than or equal to 3" in refused(*explain, "--grid", 2)  # one window would hide all
    assert "--grid 33 must lie in 3 .. 32" in refused(*explain, "--grid", 33)
    (tmp_path / "text.png").write_text("no image")
    sentence = refused("explain", fitted, tmp_path / "text.png", "--out", tmp_path / "why")
    assert "None of 1 images can be read" in sentence and "not a PNG" in sentence
    assert not (tmp_path / "why").exists()
    result = done("explain", fitted, tmp_path / "text.png", path, "--out", tmp_path / "some", "--grid", 3)
    assert "left out" in result.stderr and sorted(contents(tmp_path / "some")) == ["0002-1.png", "explanations.json"]
    assert "holds other files" in refused("explain", fitted, path, "--out", tmp_path)
    assert "is a file" in refused("explain", fitted, path, "--out", path)
