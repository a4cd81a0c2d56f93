"""What is planted in a set of images is found, and nothing where nothing is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dcube import audit as module
from dcube.audit import all_remarks, audit, audit_text, look_alikes, shortcuts
from dcube.cli import app
from dcube.config import DataConfig, Experiment
from dcube.data.sources import open_images
from dcube.data.store import Store, build_store
from dcube.settings import load_experiment

SETTINGS: Experiment = load_experiment("small", ["evaluation.bootstrap=200", "data.size=32"])
Draw = Callable[[str, int, np.random.Generator], np.ndarray]


def noise(kind: str, number: int, rng: np.random.Generator) -> np.ndarray:
    """No image has anything to do with another, nor with its class."""
    return rng.integers(0, 256, (32, 32))


def write(root: Path, draw: Draw = noise, count: int = 40, table: list[str] | None = None) -> tuple[Any, Store]:
    """Two classes of `count` images each, in class folders, or grouped by a table of their own."""
    for number in range(2 * count):
        kind = "ill" if number % 2 else "well"
        path = root / "set" / kind / f"{number // 2:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(kind, number // 2, np.random.default_rng(number)).astype(np.uint8)).save(path)
    if table:
        (root / "set" / "manifest.csv").write_text("\n".join(["path,label,patient_id", *table]))
    images = open_images(str(root / "set"))
    return images, build_store(images, DataConfig(size=32), root / "store")


def slices(kind: str, number: int, rng: np.random.Generator) -> np.ndarray:
    """Two slices each of patients who differ."""
    patient = np.random.default_rng([number // 2, kind == "ill"]).integers(0, 200, (32, 32))
    return patient + rng.integers(0, 6, (32, 32))


def test_slices_of_patients_whom_nobody_named_are_found(tmp_path: Path) -> None:
    _, store = write(tmp_path, slices)
    pairs = look_alikes(store)
    assert len(pairs) == 40 and all(r > 0.99 for _, _, r in pairs)
    for i, j, _ in pairs:
        first, second = store.paths[i], store.paths[j]
        assert first[:-7] == second[:-7] and int(first[-7:-4]) // 2 == int(second[-7:-4]) // 2
    assert [r for _, _, r in pairs] == sorted((r for _, _, r in pairs), reverse=True)
    [remark] = all_remarks(store, look_alikes(store))
    assert "80 images are as like one of another group" in remark and "patient_id" in remark


def test_slices_of_named_patients_are_in_order(tmp_path: Path) -> None:
    rows = [f"{kind}/{n:03d}.png,{kind},{kind}-{n // 2}" for kind in ("ill", "well") for n in range(40)]
    _, store = write(tmp_path, slices, table=rows)
    assert look_alikes(store) == [] and all_remarks(store, look_alikes(store)) == []


def test_a_sound_set_has_nothing_to_say(tmp_path: Path) -> None:
    images, store = write(tmp_path)
    found = audit(images, store, SETTINGS)
    assert found["remarks"] == [] and found["look_alikes"] == []
    assert found["classes"] == {"ill": {"images": 40, "groups": 40}, "well": {"images": 40, "groups": 40}}
    assert set(found["shortcuts"]) == {"majority", "statistics", "pixels", "files", "bytes", "border"}
    assert all(found["shortcuts"][name]["macro_f1"]["low"] < 0.5 for name in ("files", "bytes", "border"))
    assert "better than by guessing" not in audit_text(found) and "macro-F1" in audit_text(found)


def scanners(kind: str, number: int, rng: np.random.Generator) -> np.ndarray:
    """The ill come from two scanners, one of larger and one of smaller images than that of the others."""
    side = 32 if kind == "well" else (24, 48)[number % 2]
    return rng.integers(0, 256, (side, side))


def framed(kind: str, number: int, rng: np.random.Generator) -> np.ndarray:
    """The ill have a mark in a corner."""
    pixels = rng.integers(0, 256, (32, 32))
    pixels[:2, :2] = 255 if kind == "ill" else 0
    return pixels


def smooth(kind: str, number: int, rng: np.random.Generator) -> np.ndarray:
    """The ill have less noise: fewer grey values, which a file holds in fewer bytes."""
    return rng.integers(0, 256, (32, 32)) // (16 if kind == "ill" else 1)


@pytest.mark.parametrize(("draw", "name"), [(scanners, "files"), (smooth, "bytes"), (framed, "border")])
def test_planted_shortcuts_are_found(tmp_path: Path, draw: Draw, name: str) -> None:
    images, store = write(tmp_path, draw)
    found = audit(images, store, SETTINGS)
    assert found["shortcuts"][name]["macro_f1"]["low"] > 0.8
    assert f"By the {name} alone (see below) the classes can be told apart" in audit_text(found)


def test_a_given_test_split_stays_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(noise("", number, np.random.default_rng(number)).astype(np.uint8)).save(
            tmp_path / "set" / f"{number}.png"
        )
    rows = [f"{n}.png,{'ab'[n % 2]},{'test' if n >= 30 else 'train'}" for n in range(40)]
    (tmp_path / "set" / "manifest.csv").write_text("\n".join(["path,label,split", *rows]))
    images = open_images(str(tmp_path / "set"))
    store = build_store(images, DataConfig(size=32), tmp_path / "store")
    assert {part["n"] for part in shortcuts(images, store, SETTINGS).values()} == {30}


def test_of_many_images_a_draw_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = write(tmp_path, slices)
    monkeypatch.setattr(module, "MOST", 30)
    monkeypatch.setattr(module, "CHUNK", 7)  # of several parts
    some = look_alikes(store, 0)
    assert 0 < len(some) < 15 and some == look_alikes(store, 0)
    monkeypatch.setattr(module, "MOST", 80)
    every = [pair[:2] for pair in look_alikes(store, 0)]
    assert {pair[:2] for pair in some} <= set(every) and len(every) == 40


def test_of_many_groups_a_draw_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{kind}/{n:03d}.png,{kind},{kind}{n // 2}" for kind in ("ill", "well") for n in range(40)]
    images, store = write(tmp_path, table=rows)
    monkeypatch.setattr(module, "ASKED", 30)
    drawn = module._drawn(store, 0)
    assert 30 <= len(drawn) <= 31 and np.array_equal(drawn, module._drawn(store, 0))
    assert np.bincount(store.labels[drawn]).min() >= 14
    groups = np.array(store.groups)
    assert np.isin(groups, groups[drawn]).sum() == len(drawn), "whole groups"
    assert {part["n"] for part in shortcuts(images, store, SETTINGS).values()} == {len(drawn)}


def test_folds_without_two_classes_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{kind}/{n:03d}.png,{kind},{kind}{n // 8}" for kind in ("ill", "well") for n in range(40)]
    images, store = write(tmp_path, table=rows)
    monkeypatch.setattr(module, "ASKED", 9)  # a group of each class: without either one class is left
    assert shortcuts(images, store, SETTINGS) == {}
    monkeypatch.setattr(module, "ASKED", 17)  # two of one class
    found = shortcuts(images, store, SETTINGS)
    assert found and all(part["n"] == 16 for part in found.values()), "those of the class that is there twice"


def test_few_groups_blank_images_and_a_set_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, store = write(tmp_path, lambda kind, number, rng: np.full((32, 32), 7), count=3)
    found = audit(images, store, SETTINGS)
    assert found["shortcuts"] == {} and found["remarks"] == [] and "Too few groups" in audit_text(found)
    phantom = open_images("phantom:patients=24,slices=1,size=32")
    small = build_store(phantom, DataConfig(size=32), tmp_path / "phantom")
    assert not {"files", "bytes"} & shortcuts(phantom, small, SETTINGS).keys()
    monkeypatch.setattr(module, "ALIKE", 0.5)
    assert look_alikes(small) == []


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCUBE_CACHE", str(tmp_path / "cache"))
    write(tmp_path, slices, count=10)
    options = ["--set", "data.size=32", "--set", "evaluation.bootstrap=200"]
    result = CliRunner().invoke(app, ["audit", str(tmp_path / "set"), "--out", str(tmp_path / "a.json"), *options])
    assert result.exit_code == 0, result.output
    assert "20 images, 20 groups" in result.output and "if they are of one patient" in result.output
    found = json.loads((tmp_path / "a.json").read_text())
    assert len(found["look_alikes"]) == 10 and found["look_alikes"][0]["correlation"] > 0.99
    wrong = CliRunner().invoke(app, ["audit", str(tmp_path / "set"), "--out", "a.csv"])
    assert wrong.exit_code == 2 and "must end in .json" in wrong.output
