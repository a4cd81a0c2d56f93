"""`dcube reproduce step1`: one command, two processes, a table that says what the cells say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_fit import contents, done, refused, write_manifest, write_recipe

from dcube.data.dataset import ImageData
from dcube.errors import InputError
from dcube.files import file_digest, write_json
from dcube.reproduce import _check_folder, _initial, named_stores
from dcube.training.state import save_weights
from tiny import tiny_data, tiny_experiment

PHANTOM = "phantom:patients=60,slices=1,size=32"
SMALL = ("--folds", 2, "--seeds", "0", "--timesteps", "3")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    recipe = write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")
    steps = ["--set", "diffusion.optimizer.steps=3", "--set", "classifier.optimizer.steps=3"]
    return "reproduce", "step1", "--recipe", recipe, *steps


def test_a_study_from_one_command(command: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "study"
    printed = done(*command, "--data", PHANTOM, "--out", out, *SMALL, "--jobs", 2).stdout
    held = json.loads((out / "step1.json").read_text())
    [(name, shares)] = held["results"].items()
    assert list(shares) == ["whole", "quarter"] and (out / f"samples-{name}.png").is_file()
    value = shares["whole"]["macro_f1"]["D-Cube"]["value"]
    assert f"{value:.3f}" in printed and (out / "step1.md").read_text().strip() in printed
    assert (out / "step1.svg").read_text().count("<svg") == 1
    before = contents(out)
    done(*command, "--data", PHANTOM, "--out", out, *SMALL, "--jobs", 2)
    assert contents(out) == before
    for other in (("--folds", 3), ("--share", 0.5)):
        sentence = refused(*command, "--data", PHANTOM, "--out", out, *SMALL, *other)
        assert "other settings" in sentence


def test_a_folder_holds_a_study_of_the_same_images(tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", {"folds": 2, "data": {"scans": "as they were"}})
    _check_folder(tmp_path, {"folds": 2, "data": {"more": "of them"}})
    _check_folder(tmp_path, {"folds": 2, "share": 0.25, "data": {}})  # what all had when none was told
    with pytest.raises(InputError, match="other settings"):
        _check_folder(tmp_path, {"folds": 2, "share": 0.5, "data": {}})
    _check_folder(tmp_path, {"folds": 2, "data": {"scans": "as they were"}})
    with pytest.raises(InputError, match="other images called 'scans'"):
        _check_folder(tmp_path, {"folds": 2, "data": {"more": "of them", "scans": "corrected"}})


def test_weights_that_have_seen_what_is_held_out_are_refused(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "store", counts=(18, 16, 15), given=True)
    stores, out, file = {"tiny": data.store}, tmp_path / "out", tmp_path / "init.safetensors"
    settings = tiny_experiment(diffusion={"init": str(file)})
    with pytest.raises(InputError, match="is not a file"):
        _initial(settings, out, stores, test=False)
    for split, test, refused_there in (("train", False, True), ("test", False, False), ("test", True, True)):
        told = ImageData(data.store, np.where(data.splits == split, "train", "test")).seen
        save_weights(file, torch.nn.Linear(1, 1), {"seen": told})
        if refused_there:
            with pytest.raises(InputError, match="images of tiny that the study holds out"):
                _initial(settings, out, stores, test)
        else:
            write_json(out / "plan.json", {"folds": 2, "init": _initial(settings, out, stores, test), "data": {}})
    asked = {"folds": 2, "init": file_digest(file), "data": {}}
    with pytest.raises(InputError, match="other settings"):  # other weights under the same name
        _check_folder(out, asked)
    write_json(out / "plan.json", {"folds": 2, "data": {}})  # of an older version
    _check_folder(out, asked)
    write_json(out / "plan.json", asked)
    file.unlink()
    assert _initial(settings, out, stores, test=False) == asked["init"], "a study does without the file"


def test_bad_input_is_found_before_any_work(command: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "study"
    few = write_manifest(tmp_path / "few")
    assert "group" in refused(*command, "--data", few, "--out", out, *SMALL)
    assert "0,1" in refused(*command, "--data", PHANTOM, "--out", out, "--seeds", "one")
    assert "0 .. 19" in refused(*command, "--data", PHANTOM, "--out", out, "--timesteps", "50")
    assert "--draws are of a part" in refused(
        *command, "--data", PHANTOM, "--out", out, *SMALL, "--draws", 2, "--no-quarter"
    )
    assert "called 'few'" in refused(*command, "--data", few, "--data", few, "--out", out, *SMALL)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    assert "other files" in refused(*command, "--data", PHANTOM, "--out", full, *SMALL)
    assert not list(out.rglob("*.safetensors")) and [p.name for p in full.iterdir()] == ["notes.txt"]


def test_image_sets_are_called_by_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are given; and results do not lie among them."""
    write_manifest(tmp_path / "scans")
    settings = tiny_experiment()
    monkeypatch.chdir(tmp_path / "scans")
    for given in (".", "../scans", str(tmp_path / "scans") + "/"):
        assert list(named_stores([given], settings, tmp_path / "out")) == ["scans"]
    (tmp_path / "scans" / "manifest.csv").unlink()
    folders = tmp_path / "scans"
    with pytest.raises(InputError, match="lies inside the images' folder"):
        named_stores([folders], settings, folders / "bench")
