"""What the terminal says beside the figures: nobody should have to open the report to learn how little they show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_fit import PHANTOM, done, refused, write_image, write_scans


def test_what_limits_the_figures_stands_below_them(copied: Path) -> None:
    page = copied / "report.html"
    page.write_text("older")
    said = done("evaluate", copied, "--split", "test", "--again").stdout
    table, _, cautions = said.partition("Read this with the result:\n")
    assert "D-Cube" in table and "- The images are synthetic" in cautions
    assert "- The test split has been used 2 times" in cautions and "few groups (patients) in this split" in cautions
    written = page.read_text()
    assert all(line.removeprefix("- ").split("'")[0].split("&")[0] in written for line in cautions.splitlines())


def test_answers_of_an_unfinished_model_are_told(recipe: Path, tmp_path: Path) -> None:
    run, image = tmp_path / "run", write_image(tmp_path / "new.png", 1)
    said = done("fit", PHANTOM, "--out", run, "--recipe", recipe, "--max-minutes", 0).stdout
    assert "- Training stopped early: step 1 after" in said
    answers = done("predict", run, image)
    assert "stopped early (step 1 after" in answers.stderr and "of 6 steps" in answers.stderr
    assert "early" not in answers.stdout
    (run / "evaluation/metrics-val.json").write_text("{")
    assert done("predict", run, image).stdout == answers.stdout, "which needs no figures"
    done("fit", PHANTOM, "--out", run, "--recipe", recipe)
    assert "early" not in done("predict", run, image).stderr


def test_folders_of_patients_are_no_classes(recipe: Path, tmp_path: Path) -> None:
    scans, pile = write_scans(tmp_path / "scans", 9), tmp_path / "pile"
    for number in range(4):
        write_image(pile / f"p{number % 2}" / f"{number}.png", number)
    fit = ("fit", scans, "--unlabelled", pile, "--out", tmp_path / "run", "--recipe", recipe, "--no-test")
    sentence = refused(*fit)
    assert "pile was read as a labelled set of the classes p0, p1, of which a part is held out" in sentence
    assert "without the column label (path,patient_id)" in sentence and not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name != "posix", reason="pipes as Unix has them")
def test_a_reader_that_has_read_enough_is_no_error() -> None:
    held = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for verb in (["benchmark", "--list"], ["recipes"]):
        for more in ({}, {"PYTHONUNBUFFERED": "1"}):
            command = [sys.executable, "-m", "dcube", *verb]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=held | more)
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b"" and process.wait() == 141


def test_recipes_are_listed_with_all_that_is_said_of_them() -> None:
    said = done("recipes").stdout
    assert len(said.splitlines()) == 6
    assert "lambda_cycle, which it does not give for this set. Meant for a GPU." in said
