"""`dcube reproduce step1`: one command, two processes, a table that says what the cells say."""

import json
from pathlib import Path

import pytest
from tiny_fit import contents, done, refused, write_manifest, write_recipe

from dcube.errors import InputError
from dcube.files import write_json
from dcube.reproduce import _check_folder

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
    sentence = refused(*command, "--data", PHANTOM, "--out", out, *SMALL[2:], "--folds", 3)
    assert "other settings" in sentence


def test_a_folder_holds_a_study_of_the_same_images(tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", {"folds": 2, "data": {"scans": "as they were"}})
    _check_folder(tmp_path, {"folds": 2, "data": {"more": "of them"}})
    _check_folder(tmp_path, {"folds": 2, "data": {"scans": "as they were"}})
    with pytest.raises(InputError, match="other images called 'scans'"):
        _check_folder(tmp_path, {"folds": 2, "data": {"more": "of them", "scans": "corrected"}})


def test_bad_input_is_found_before_any_work(command: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "study"
    few = write_manifest(tmp_path / "few")
    assert "group" in refused(*command, "--data", few, "--out", out, *SMALL)
    assert "0,1" in refused(*command, "--data", PHANTOM, "--out", out, "--seeds", "one")
    assert "0 .. 19" in refused(*command, "--data", PHANTOM, "--out", out, "--timesteps", "50")
    assert "called 'few'" in refused(*command, "--data", few, "--data", few, "--out", out, *SMALL)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    assert "other files" in refused(*command, "--data", PHANTOM, "--out", full, *SMALL)
    assert not list(out.rglob("*.safetensors")) and [p.name for p in full.iterdir()] == ["notes.txt"]
