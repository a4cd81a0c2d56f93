"""`dcube fit DATA --unlabelled MORE`: images without labels help step 1, in one command that resumes as any other."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_fit import contents, done, killed_at, metrics, refused, table, write_image, write_manifest, write_scans

from dcube.data.seen import CONTENT, marks_of
from dcube.diffusion.warmstart import labelled_phase
from dcube.runs import Run
from dcube.settings import load_experiment
from dcube.stages import open_data
from dcube.training.state import load_weights

WEIGHTS = "diffusion/model.safetensors"
FIRST = f"unlabelled/{WEIGHTS}"


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans") / "ct", 9)


@pytest.fixture(scope="module")
def pile(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a hospital has: new images, and the labelled ones among them."""
    folder = tmp_path_factory.mktemp("more") / "pile"
    for number in range(10):
        write_image(folder / f"new-{number}.png", 500 + number, 30)
    for number, image in enumerate(sorted(scans.rglob("*.png"))):
        shutil.copy(image, folder / f"known-{number}.png")
    return folder


@pytest.fixture(scope="module")
def fitted(scans: Path, pile: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    out = tmp_path_factory.mktemp("unlabelled") / "run"
    done("fit", scans, "--unlabelled", pile, "--out", out, "--recipe", recipe)
    return out


def equal(one: Path, other: Path) -> bool:
    (a, _), (b, _) = load_weights(one), load_weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_is_the_two_commands_in_one(fitted: Path, scans: Path, pile: Path, recipe: Path, tmp_path: Path) -> None:
    done("diffuse", scans, pile, "--out", tmp_path / "pre", "--recipe", recipe)
    assert equal(tmp_path / "pre" / WEIGHTS, fitted / FIRST)
    begun = ("--set", f"diffusion.init={tmp_path / 'pre' / WEIGHTS}", "--set", "diffusion.optimizer.steps=1")
    done("fit", scans, "--out", tmp_path / "run", "--recipe", recipe, *begun)
    assert equal(tmp_path / "run" / WEIGHTS, fitted / WEIGHTS)
    assert metrics(tmp_path / "run")["macro_f1"] == metrics(fitted)["macro_f1"]
    assert "RUN/unlabelled/diffusion/model.safetensors" in (fitted / "report.html").read_text()


def test_nothing_that_is_held_out_is_seen(fitted: Path) -> None:
    data = open_data(Run.open(fitted))
    seen = load_weights(fitted / WEIGHTS)[1]["seen"]
    assert data.store.marks is not None
    known = torch.isin(*(torch.from_numpy(m.astype("int64")) for m in (data.store.marks, marks_of(seen[CONTENT]))))
    assert known.tolist() == [part == "train" for part in data.splits.tolist()]
    assert sum(row["split"] == "train" for row in table(fitted / "unlabelled/split.csv")) == 10 + 2 * known.sum()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_and_repeated_it_equals_an_uninterrupted_one(
    scans: Path, pile: Path, recipe: Path, tmp_path: Path
) -> None:
    long = ("--recipe", str(recipe), "--set", "diffusion.optimizer.steps=60", "--no-test")
    done("fit", scans, "--unlabelled", pile, "--out", tmp_path / "whole", *long)
    out, kills = tmp_path / "pieces", 0
    for saved, step in ((out / "unlabelled/diffusion/checkpoint", 20), (out / "diffusion/checkpoint", 2)):
        kills += killed_at(step, saved, "fit", scans, "--unlabelled", pile, "--out", out, *long)
    assert kills == 2
    done("fit", scans, "--unlabelled", pile, "--out", out, *long)
    for weights in (FIRST, WEIGHTS, "classifier/model.safetensors"):
        assert equal(tmp_path / "whole" / weights, out / weights), weights


def test_a_finished_run_may_be_moved_and_lose_what_it_began_with(
    fitted: Path, scans: Path, pile: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fitted, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    fit = ("fit", scans, "--unlabelled", pile, "--out", "moved", "--recipe", recipe)
    before = contents(tmp_path / "moved")
    done(*fit)
    Path("moved", FIRST).unlink()
    renamed = Path(shutil.copytree(pile, tmp_path / "renamed"))
    done(*fit)
    done("fit", scans, "--unlabelled", renamed, *fit[4:])
    after = contents(tmp_path / "moved")
    kept = [name for name in before if name.endswith((".safetensors", ".csv", ".yaml"))]
    assert [name for name in kept if before[name] != after.get(name)] == [FIRST]
    assert "diffusion.init" in refused("fit", scans, "--out", "moved", "--recipe", recipe)


def test_the_test_split_waits_for_both_parts_of_step_1(scans: Path, pile: Path, recipe: Path, tmp_path: Path) -> None:
    fit = ("fit", scans, "--unlabelled", pile, "--out", tmp_path / "run", "--recipe", recipe)
    assert "The test split waits" in done(*fit, "--max-minutes", 0).stdout
    assert not (tmp_path / "run/evaluation/metrics.json").exists() and (tmp_path / "run" / WEIGHTS).is_file()
    done(*fit)
    assert metrics(tmp_path / "run")["test_evaluations"] == 1


def test_other_names_of_the_same_images_change_nothing(
    fitted: Path, scans: Path, pile: Path, recipe: Path, tmp_path: Path
) -> None:
    out, renamed = (Path(shutil.copytree(one, tmp_path / name)) for one, name in ((fitted, "run"), (pile, "renamed")))
    before = contents(out)
    done("fit", scans, "--unlabelled", renamed, "--out", out, "--recipe", recipe)
    after = contents(out)
    assert not [name for name in before if name.endswith((".safetensors", ".csv")) and before[name] != after[name]]


def test_a_restart_that_needs_what_was_deleted_makes_it_again(
    fitted: Path, scans: Path, pile: Path, recipe: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(fitted, tmp_path / "run"))
    (out / FIRST).unlink()
    fit = ("fit", scans, "--unlabelled", pile, "--out", out, "--recipe", recipe, "--no-test", "--restart")
    done(*fit, "--set", "diffusion.optimizer.lr=2e-3")
    assert not equal(out / FIRST, fitted / FIRST) and not equal(out / WEIGHTS, fitted / WEIGHTS)


def test_a_prepared_set_that_cannot_be_known_again_is_refused(
    scans: Path, pile: Path, recipe: Path, tmp_path: Path
) -> None:
    done("prepare", scans, "--out", tmp_path / "store", "--recipe", recipe)
    file = tmp_path / "store/store.json"
    held = json.loads(file.read_text())
    del held["marks"]
    file.write_text(json.dumps(held))
    fit = ("fit", tmp_path / "store", "--unlabelled", pile, "--out", tmp_path / "run", "--recipe", recipe)
    assert "store was prepared by an older version" in refused(*fit)


def test_another_pile_is_refused_and_restarts(
    fitted: Path, scans: Path, pile: Path, recipe: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(fitted, tmp_path / "run"))
    more = Path(shutil.copytree(pile, tmp_path / "pile"))
    write_image(more / "newer.png", 9)
    fit = ("fit", scans, "--unlabelled", more, "--out", out, "--recipe", recipe)
    before = contents(out)
    assert "unlabelled belongs to the data" in refused(*fit)
    assert contents(out)[WEIGHTS] == before[WEIGHTS]
    assert "already evaluated" in refused(*fit, "--restart")
    assert {k: v for k, v in contents(out).items() if k[0] != "."} == {k: v for k, v in before.items() if k[0] != "."}
    done(*fit, "--restart", "--no-test")
    done("fit", scans, "--unlabelled", more, "--out", tmp_path / "fresh", "--recipe", recipe, "--no-test")
    assert equal(out / WEIGHTS, tmp_path / "fresh" / WEIGHTS) and not equal(out / WEIGHTS, fitted / WEIGHTS)
    stamp = (out / FIRST).stat().st_mtime_ns
    done(*fit, "--restart", "--no-test", "--set", "classifier.dropout=0.3")
    assert (out / FIRST).stat().st_mtime_ns == stamp, "step 1 does not depend on that"
    done(*fit, "--restart", "--no-test", "--set", "classifier.dropout=0.3")
    assert (out / FIRST).stat().st_mtime_ns != stamp, "nothing changed: everything anew"


def test_each_fold_begins_without_its_own_images(recipe: Path, tmp_path: Path) -> None:
    """And without those of the test split that the data bring, which folds leave closed."""
    scans = write_manifest(tmp_path / "scans", 10)
    for number, image in enumerate(sorted(scans.rglob("*.png"))):
        (tmp_path / "pile").mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / f"pile/{number}.png")
    fit = ("fit", scans, "--unlabelled", tmp_path / "pile", "--out", tmp_path / "run", "--recipe", recipe, "--folds", 2)
    done(*fit)
    for fold in (0, 1):
        here = tmp_path / f"run/fold-{fold}"
        data, (_, about) = open_data(Run.open(here)), load_weights(here / FIRST)
        assert data.store.marks is not None
        held = data.store.marks[data.splits != "train"].tolist()
        assert sum(split == "test" for split in data.store.given_splits) == 4 and "" in data.splits
        assert len(held) > 4 and not set(held) & set(marks_of(about["seen"][CONTENT]).tolist())
    assert metrics(tmp_path / "run")["folds"] == 2
    before = contents(tmp_path / "run")
    done(*fit)
    after = contents(tmp_path / "run")
    assert not [name for name in before if name.endswith(".safetensors") and before[name] != after[name]]


def test_what_a_fit_with_images_without_labels_refuses(
    fitted: Path, scans: Path, pile: Path, recipe: Path, tmp_path: Path
) -> None:
    fit = ("fit", scans, "--out", tmp_path / "run", "--recipe", recipe)
    assert "no folder or file" in refused(*fit, "--unlabelled", tmp_path / "none")
    assert "are the same images" in refused(*fit, "--unlabelled", scans)
    assert not (tmp_path / "run").exists()
    assert "lies inside the images' folder" in refused("fit", scans, "--unlabelled", pile, "--out", pile / "run")
    again = ("fit", scans, "--out", tmp_path / "new", "--recipe", fitted / "experiment.yaml")
    assert "is what `dcube fit --unlabelled` makes" in refused(*again)
    assert "is what `dcube fit --unlabelled` makes" in refused(*again, "--unlabelled", pile)
    dry = done(*fit, "--unlabelled", pile, "--dry-run").stdout
    assert "step 1 without labels, up to 38 images: 6 steps" in dry and "step 1 (diffusion): 1 steps" in dry


def test_a_set_without_labels_is_prepared_and_audited_as_any_other(
    pile: Path, scans: Path, recipe: Path, tmp_path: Path
) -> None:
    shutil.copy(pile / "new-0.png", shutil.copytree(pile, tmp_path / "pile") / "again.png")
    prepare = ("prepare", tmp_path / "pile", "--out", tmp_path / "store", "--recipe", recipe)
    assert "29 images" in done(*prepare, "--set", "evaluation.without=[[benign]]").stdout
    audit = done("audit", tmp_path / "pile", "--recipe", recipe).stdout
    assert "again.png" in audit and "Too few groups or classes" in audit
    fit = ("fit", scans, "--out", tmp_path / "run", "--recipe", recipe, "--no-test", "--max-minutes", 0)
    assert "29 images" in done(*fit, "--unlabelled", tmp_path / "store").stdout
    assert "at least two" in refused("fit", tmp_path / "store", "--out", tmp_path / "new", "--recipe", recipe)


def test_the_part_with_labels_is_a_tenth_as_long() -> None:
    config = load_experiment("small", ["diffusion.growth=[[0.5, 32]]"]).diffusion
    phase = labelled_phase(config, "weights")
    assert (phase.optimizer.steps, phase.optimizer.warmup_steps) == (160, 40)
    assert (phase.init, phase.growth) == ("weights", ())
    paper = load_experiment("pancreas-ct").diffusion
    assert labelled_phase(paper, "weights").optimizer.total_steps(1000) == round(
        paper.optimizer.total_steps(1000) / 10
    )
