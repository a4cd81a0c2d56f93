"""Nothing that was made with older weights stays beside newer ones, and nothing is lost with a run's stamps."""

import shutil
from pathlib import Path

from tiny_fit import PHANTOM, contents, done, metrics, refused, write_image


def test_a_step_1_that_trains_on_takes_what_was_made_with_the_older_one(
    recipe: Path, fitted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fit = ("fit", PHANTOM, "--out", run, "--recipe", recipe)
    assert "Step 1 has changed" not in done(*fit, "--max-minutes", 0).stdout
    assert (run / "classifier/model.safetensors").is_file() and (run / "report.html").is_file()
    assert "the classifier and the figures made with the older one are removed" in done("diffuse", run).stdout
    left = ("selection.json", "selection.svg", "classifier", "evaluation", "report.html")
    assert not [name for name in left if (run / name).exists()]
    assert "`dcube classify" in refused("predict", run, write_image(tmp_path / "new.png", 1))
    assert "`dcube classify" in refused("evaluate", run, "--split", "test")
    done(*fit)
    assert metrics(run) == metrics(fitted), "the one look at the test split was not spent"


def test_a_step_1_that_has_ended_takes_nothing(copied: Path) -> None:
    before = contents(copied)
    done("diffuse", copied)
    assert contents(copied) == before


def test_a_copy_without_the_hidden_file_is_left_as_it_is(copied: Path, recipe: Path, tmp_path: Path) -> None:
    image = write_image(tmp_path / "new.png", 1)
    predicted = done("predict", copied, image).stdout
    (copied / ".stages.json").rename(tmp_path / "stages.json")
    before = contents(copied)
    fit = ("fit", PHANTOM, "--out", copied, "--recipe", recipe)
    stages = ("diffuse", "select", "classify", "evaluate", "report", "probe")
    for verb in (fit, (*fit, "--no-test"), (*fit, "--restart", "--again"), *((stage, copied) for stage in stages)):
        assert "lacks its hidden file .stages.json" in refused(*verb)
    assert contents(copied) == before
    assert done("predict", copied, image).stdout == predicted
    shutil.rmtree(copied / "diffusion")  # the test figures alone tell that it was seen
    assert "copy the folder itself" in refused(*fit)
    shutil.rmtree(copied / "evaluation")
    (tmp_path / "stages.json").rename(copied / ".stages.json")
    assert "--again" in refused(*fit, "--seed", 1, "--restart")
