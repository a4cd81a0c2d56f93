"""From images to predictions: repeatable, resumable, portable."""

import html
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_fit import PHANTOM, child, contents, done, metrics, refused, table, write_image, write_manifest

import dcube
from dcube.training.log import read_log
from dcube.training.state import load_weights

WEIGHTS = ("diffusion/model.safetensors", "classifier/model.safetensors")
HOLDER = """
import sys, time
from dcube.runs import Run
with Run(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def assert_same_weights(one: Path, other: Path) -> None:
    for file in WEIGHTS:
        (a, about), (b, also) = load_weights(one / file), load_weights(other / file)
        assert about == also and a.keys() == b.keys()
        assert not [name for name in a if not torch.equal(a[name], b[name])], file


def stamp(path: Path) -> tuple[int, bytes]:
    return path.stat().st_mtime_ns, path.read_bytes()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """17 new images of several sizes."""
    return [write_image(tmp_path / "new" / f"p{i % 3}" / f"{i}.png", i, 5 * i, size=20 + 3 * i) for i in range(17)]


def test_one_seed_gives_one_result(fitted: Path, recipe: Path, tmp_path: Path) -> None:
    done("fit", PHANTOM, "--out", tmp_path / "run", "--recipe", recipe)
    assert_same_weights(fitted, tmp_path / "run")
    names = ("metrics.json", "metrics-val.json", "predictions.csv", "predictions-val.csv")
    for name in ("selection.json", "split.csv", *(f"evaluation/{name}" for name in names)):
        assert (fitted / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_alone_and_in_a_batch(fitted: Path, images: list[Path], tmp_path: Path) -> None:
    model = dcube.load(fitted, "cpu")
    together = model.predict_proba(images)
    assert together.shape == (17, 3) and np.allclose(together.sum(1), 1, atol=1e-6)
    alone = np.concatenate([model.predict_proba([image]) for image in images])
    np.testing.assert_allclose(alone, together, atol=1e-5, rtol=0)
    raw = [np.asarray(Image.open(image)) for image in images]
    np.testing.assert_allclose(model.predict_proba(raw), together, atol=1e-5, rtol=0)

    done("predict", fitted, *images, "--out", tmp_path / "batch.json")
    rows = json.loads((tmp_path / "batch.json").read_text())
    assert [row["path"] for row in rows] == [str(image) for image in images]
    table = np.array([[row[f"p_{name}"] for name in model.classes] for row in rows])
    np.testing.assert_allclose(table, together, atol=1e-5, rtol=0)
    for number in (0, 16):
        done("predict", fitted, images[number], "--out", tmp_path / "one.json")
        [row] = json.loads((tmp_path / "one.json").read_text())
        assert [row[f"p_{name}"] for name in model.classes] == pytest.approx(together[number], abs=1e-5)


def test_images_unlike_the_training_set_are_marked(fitted: Path, tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "small.png")
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save(tmp_path / "white.png")
    small, white = dcube.load(fitted, "cpu").predict_files([str(tmp_path / "small.png"), str(tmp_path / "white.png")])
    assert "only 8 x 8 pixels" in small["warning"] and "colour" in small["warning"]
    assert "brightness 1.00 lies outside" in white["warning"]


def test_samples_of_a_class(fitted: Path) -> None:
    model = dcube.load(fitted, "cpu")
    samples = model.sample("malignant", 3, seed=1)
    assert samples.shape == (3, 1, 16, 16) and samples.min() >= 0 and samples.max() <= 1
    np.testing.assert_allclose(model.sample("malignant", 1, seed=1), samples[:1], atol=1e-5)
    assert model.predict_proba(np.zeros((2, 1, 32, 32))).shape == (2, 3)


def test_moved_run_predicts_without_data_and_store(
    recipe: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mirroring is off as well: the settings that it takes train."""
    monkeypatch.setenv("DCUBE_CACHE", str(tmp_path / "cache"))
    data = write_manifest(tmp_path / "scans")
    unmirrored = ("data.horizontal_flip=false", "classifier.lambda_consistency=0", "diffusion.augment=false")
    settings = [word for setting in unmirrored for word in ("--set", setting)]
    done("fit", data, "--out", tmp_path / "run", "--recipe", recipe, *settings)
    assert "consistency" not in read_log(tmp_path / "run/classifier/log.jsonl")[-1]
    before = done("predict", tmp_path / "run", tmp_path / "new").stdout
    for gone in ("scans", "cache"):
        shutil.rmtree(tmp_path / gone)
    moved = tmp_path / "elsewhere" / "model"
    shutil.move(tmp_path / "run", moved)
    assert done("predict", moved, tmp_path / "new").stdout == before

    done("predict", moved, tmp_path / "new", images[0], "--by-group", "--out", tmp_path / "groups.csv")
    groups = table(tmp_path / "groups.csv")
    assert [(Path(row["group"]).name, row["images"]) for row in groups] == [("p0", "6"), ("p1", "6"), ("p2", "5")]
    (tmp_path / "new.csv").write_text("path,patient_id\n" + "".join(f"{image},P\n" for image in images[:2]))
    done("predict", moved, tmp_path / "new.csv", "--by-group", "--out", tmp_path / "groups.json")
    [row] = json.loads((tmp_path / "groups.json").read_text())
    assert (row["group"], row["images"]) == ("P", 2) and row["p_benign"] + row["p_malignant"] == pytest.approx(1)
    assert "no longer at" in refused("evaluate", moved)


def test_changed_setting_is_named(copied: Path, recipe: Path) -> None:
    before = contents(copied)
    sentence = refused("fit", PHANTOM, "--out", copied, "--recipe", recipe, "--set", "classifier.dropout=0.3")
    assert "classifier.dropout: 0.5 -> 0.3" in sentence and "--restart" in sentence
    assert "seed: 0 -> 1" in refused("fit", PHANTOM, "--out", copied, "--recipe", recipe, "--seed", 1)
    assert contents(copied) == before
    done("fit", PHANTOM, "--out", copied, "--recipe", copied / "experiment.yaml")  # is itself a recipe: no change
    assert before["evaluation/metrics.json"] == contents(copied)["evaluation/metrics.json"]


def test_restart_redoes_what_a_change_touches(copied: Path, recipe: Path, fitted: Path) -> None:
    fit = ("fit", PHANTOM, "--out", copied, "--recipe", recipe, "--restart")
    change = ("--set", "classifier.dropout=0.3")
    before = contents(copied)
    assert "--again" in refused(*fit, *change)  # the test split was seen: said before anything is trained
    assert contents(copied) == before

    kept = [stamp(copied / name) for name in ("diffusion/model.safetensors", "selection.json")]
    done(*fit, *change, "--no-test")
    assert kept == [stamp(copied / name) for name in ("diffusion/model.safetensors", "selection.json")]
    assert load_weights(copied / WEIGHTS[1])[1]["classifier"]["dropout"] == 0.3
    assert not (copied / "evaluation/metrics.json").exists(), "figures of the former classifier"
    assert metrics(copied, "metrics-val") != metrics(fitted, "metrics-val")
    done("fit", PHANTOM, "--out", copied, "--recipe", recipe, *change, "--again")
    assert metrics(copied)["test_evaluations"] == 2


def test_restart_without_a_change_begins_anew(copied: Path, recipe: Path, fitted: Path) -> None:
    before = stamp(copied / "diffusion/model.safetensors")
    device = ("--set", "runtime.checkpoint_seconds=1")  # about speed: no change of the experiment
    done("fit", PHANTOM, "--out", copied, "--recipe", recipe, "--restart", *device)
    assert stamp(copied / "diffusion/model.safetensors")[0] != before[0]
    assert_same_weights(copied, fitted)
    assert metrics(copied) == metrics(fitted), "the same classifier: no second look at the test split"


def test_second_process_is_told(copied: Path, recipe: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(copied)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            for verb in (("fit", PHANTOM, "--out", copied, "--recipe", recipe), ("select", copied)):
                assert f"Another process (pid {holder.pid}) is working on" in refused(*verb)
        finally:
            holder.kill()


def steps(run: Path, stage: str) -> int:
    """The step of the newest checkpoint; -1 before the first."""
    names = [path.name for path in (run / stage / "checkpoint").glob("step-*")]
    return max((int(name.removeprefix("step-")) for name in names), default=-1)


def stages_done(run: Path) -> int:
    file = run / ".stages.json"
    return len(json.loads(file.read_text())["done"]) if file.is_file() else 0


MOMENTS = (
    lambda run: (run / "experiment.yaml").exists(),
    lambda run: steps(run, "diffusion") >= 2,
    lambda run: steps(run, "diffusion") >= 5,
    lambda run: stages_done(run) >= 1,
    lambda run: (run / "selection.json").exists(),
    lambda run: steps(run, "classifier") >= 0,
    lambda run: steps(run, "classifier") >= 4,
    lambda run: stages_done(run) >= 3,
    lambda run: (run / "evaluation/metrics-val.json").exists(),
    lambda run: (run / "evaluation/predictions.csv").exists(),
)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_at_ten_moments_equals_uninterrupted(
    fitted: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # for the server
    context = multiprocessing.get_context("forkserver")  # its children are fresh, but need not import torch again
    context.set_forkserver_preload(["tiny_fit", "dcube.stages", "accelerate", "timm", "sklearn.linear_model"])
    arguments = ["fit", PHANTOM, "--out", str(run), "--recipe", str(recipe)]
    killed = 0
    for moment in MOMENTS:
        process = context.Process(target=child, args=(arguments,))
        process.start()
        until = time.monotonic() + 60
        while process.is_alive() and not moment(run):
            assert time.monotonic() < until
            time.sleep(0.002)
        process.kill()
        process.join(60)
        killed += process.exitcode == -signal.SIGKILL
    assert killed == len(MOMENTS), "every process must have been killed before its end"
    assert not (run / "report.html").exists()
    process = context.Process(target=child, args=(arguments,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert_same_weights(run, fitted)
    for name in ("selection.json", "split.csv", "evaluation/metrics.json", "evaluation/predictions.csv"):
        assert (run / name).read_bytes() == (fitted / name).read_bytes(), name
    assert metrics(run)["test_evaluations"] == 1
    assert not list(run.rglob("*.tmp*")), "nothing half-written is left"


def test_max_minutes_leaves_a_usable_run(fitted: Path, recipe: Path, images: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit = ("fit", PHANTOM, "--out", run, "--recipe", recipe)
    result = done(*fit, "--max-minutes", 0)
    assert "repeat the command" in result.stdout and "val split" in result.stdout
    assert steps(run, "diffusion") == steps(run, "classifier") == 0
    assert not (run / "evaluation/metrics.json").exists(), "the test split waits for the end"
    done("predict", run, images[0])
    done(*fit)
    assert_same_weights(run, fitted)
    assert metrics(run) == metrics(fitted)


def test_dry_run_writes_nothing(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scans: Path) -> None:
    monkeypatch.setenv("DCUBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    before = contents(scans)
    result = done("fit", scans, "--out", tmp_path / "run", "--recipe", recipe, "--dry-run")
    assert "16 images, 8 groups" in result.stdout and "6 steps" in result.stdout and "GB" in result.stdout
    assert "(1) val" in result.stdout and "fewer than 10 groups (patients) of benign, malignant" in result.stdout
    assert not list(tmp_path.iterdir()) and contents(scans) == before


@pytest.mark.parametrize("form", ["supervised", "auxiliary"])
def test_dry_run_with_a_term_that_has_a_head(recipe: Path, tmp_path: Path, scans: Path, form: str) -> None:
    asked = ("--set", f"diffusion.contrastive.form={form}", "--set", "diffusion.contrastive.weight=0.1")
    result = done("fit", scans, "--out", tmp_path / "run", "--recipe", recipe, "--dry-run", *asked)
    assert "6 steps" in result.stdout and not (tmp_path / "run").exists()


def test_prepared_images_are_data(recipe: Path, scans: Path, tmp_path: Path) -> None:
    done("prepare", scans, "--out", tmp_path / "store", "--recipe", recipe)
    result = done("fit", tmp_path / "store", "--out", tmp_path / "run", "--recipe", recipe, "--dry-run")
    assert "16 images, 8 groups" in result.stdout
    assert "exists already" in refused("prepare", scans, "--out", tmp_path / "store", "--recipe", recipe)


def test_step_1_s_own_network_in_the_cnn_s_place(copied: Path, fitted: Path, tmp_path: Path) -> None:
    """Classified anew, judged, told, and asked about files, while step 1 stays what it was; no CNN is needed."""
    own = ("--set", "classifier.sub_network=step1", "--set", "classifier.cnn=no_such_model")
    assert "random weights" not in done("classify", copied, *own).stdout
    tensors = load_weights(copied / WEIGHTS[1])[0]
    assert any(name.startswith("subnet.model.down.") for name in tensors)
    assert not any(name.startswith(("subnet.model.up.", "subnet.cnn")) for name in tensors)
    assert stamp(copied / WEIGHTS[0])[1] == stamp(fitted / WEIGHTS[0])[1]
    assert "macro-F1" in done("evaluate", copied).stdout
    done("report", copied)
    told = "a copy of step 1's own network at 16 px, trained further"
    assert told in html.unescape((copied / "report.html").read_text())
    write_image(tmp_path / "scan.png", 1)
    assert "scan.png" in done("predict", copied, tmp_path / "scan.png").stdout
    back = ("--set", "classifier.sub_network=cnn", "--set", "classifier.cnn=test_resnet.r160_in1k")
    assert "the CNN begins with random weights" in done("classify", copied, *back).stdout


def test_single_stages_with_settings_of_their_own(copied: Path, fitted: Path) -> None:
    done("select", copied, "--set", "features.blocks=[1,2]")
    assert json.loads((copied / "selection.json").read_text())["selected"] == [1, 2]
    assert not (copied / "classifier").exists(), "it was built on other blocks"
    assert "dcube classify" in refused("evaluate", copied)
    done("classify", copied)
    assert load_weights(copied / WEIGHTS[1])[1]["blocks"] == [1, 2]
    assert "macro-F1" in done("evaluate", copied).stdout
    done("report", copied)
    assert "before 'select'" in refused("select", copied, "--set", "diffusion.label_dropout=0.3")
    assert stamp(copied / WEIGHTS[0])[1] == stamp(fitted / WEIGHTS[0])[1]
