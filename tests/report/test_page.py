"""The report page: with everything, with almost nothing, offline, deterministic, and plain about limits."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from dcube.errors import InputError
from dcube.files import read_json, write_json, write_text
from dcube.report import write_report
from dcube.report.records import read_run

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Outline(HTMLParser):
    """Checks that tags close in order and collects texts, ids and what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.ids: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        values = dict(attrs)
        assert not any(name.startswith("on") for name in values)
        self.ids += [str(values["id"])] if values.get("id") else []
        self.loaded += [str(values[name]) for name in ("src", "href", "srcset") if name in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(path: Path) -> Outline:
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", page)
    parsed = Outline()
    parsed.feed(page)
    assert not parsed.open
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in parsed.loaded)
    assert len(parsed.ids) == len(set(parsed.ids))
    parsed.text = " ".join(parsed.text.split())
    return parsed


@pytest.fixture
def run(complete: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(complete, tmp_path / "run"))


def test_everything_is_on_the_page(complete: Path) -> None:
    path = write_report(complete)
    assert path == complete / "report.html"
    page = outline(path)
    metrics = read_json(complete / "evaluation" / "metrics.json")
    for said in (
        "not for clinical use",
        f"{metrics['macro_f1']['value']:.3f}",
        f"macro-F1 on 84 test images of {metrics['groups']} groups",
        "convolutional U-Net, 64 px, 700 steps of 32 pairs",
        "malignant & <odd>",
        "normal $x$",
        "benign/b<1>.png the file ends early",
        "Worst mistakes",
        "Figure 2 of this run",
        "reading channel_mean",
        "alpha = 0.05",
        "validation macro-F1",
        "active share",
        "Synthetic: drawn by the diffusion model, they show no patient",
        "The images are synthetic (phantom:)",
        "The test split has been used 2 times",
        "With known shortcuts left out",
        "dcube fit phantom: --out run",
        "simple statistics",
    ):
        assert said in page.text, said
    assert "This makes it" not in page.text


def test_the_page_is_deterministic_and_shows_the_latest_grid(complete: Path) -> None:
    first = write_report(complete).read_bytes()
    assert write_report(complete).read_bytes() == first
    grids = sorted((complete / "diffusion" / "samples").glob("*.png"))
    assert base64.b64encode(grids[-1].read_bytes()) in first
    assert base64.b64encode(grids[0].read_bytes()) not in first


def test_an_empty_folder_gives_a_page_of_commands(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    page = outline(write_report(folder))
    for verb in ("evaluate", "diffuse", "classify", "select"):
        assert f"dcube {verb} 'my run'" in page.text
    assert "dcube fit DATA --out 'my run'" in page.text
    assert "not for clinical use" in page.text


@pytest.mark.parametrize(
    "missing",
    [
        ("experiment.yaml", "selection.json", "diffusion"),
        ("environment.json", "split.csv", "classifier", "evaluation/predictions.csv"),
        ("data", "evaluation/metrics.json"),
    ],
)
def test_files_may_be_missing(run: Path, missing: tuple[str, ...]) -> None:
    for name in missing:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert re.search(r"This (makes|trains|tests|draws|begins|writes)", outline(write_report(run)).text)


def test_a_training_that_was_cut_short_is_not_called_whole(run: Path) -> None:
    assert "Training stopped early" not in outline(write_report(run)).text
    (run / "diffusion/checkpoint/step-00000007").mkdir(parents=True)
    (run / "classifier/checkpoint/step-00000000").mkdir(parents=True)
    settings = yaml.safe_load((run / "experiment.yaml").read_text())
    settings["classifier"]["optimizer"] |= {"steps": None, "epochs": 20, "batch_size": 9}  # of 27 images
    write_text(run / "experiment.yaml", yaml.safe_dump(settings))
    page = outline(write_report(run))
    assert "Training stopped early: step 1 after 7 of 700 steps, step 2 after 0 of 60 steps; repeat" in page.text
    assert "64 px, 7 of 700 steps of 32 pairs" in page.text and "0 of 60 steps of 9 images" in page.text
    shutil.rmtree(run / "diffusion/checkpoint")  # the log tells it too
    settings["diffusion"]["optimizer"]["steps"] = 701
    write_text(run / "experiment.yaml", yaml.safe_dump(settings))
    assert "step 1 after 700 of 701 steps" in outline(write_report(run)).text


def test_validation_figures_without_floors_say_what_they_are(run: Path) -> None:
    folder = run / "evaluation"
    metrics = read_json(folder / "metrics.json")
    for name in ("floors", "without", "test_evaluations"):
        del metrics[name]
    write_json(folder / "metrics-val.json", metrics | {"split": "val"})
    (folder / "metrics.json").unlink()
    (folder / "predictions.csv").rename(folder / "predictions-val.csv")
    page = outline(write_report(run))
    assert "These are validation figures" in page.text and "84 validation images" in page.text
    assert "No floors were computed" in page.text and "Worst mistakes" in page.text


def test_validation_stands_beside_the_test_split(run: Path) -> None:
    metrics = read_json(run / "evaluation" / "metrics.json")
    score = {"value": 0.6543, "low": 0.5, "high": 0.75}
    write_json(run / "evaluation" / "metrics-val.json", metrics | {"split": "val", "macro_f1": score})
    assert "macro-F1 0.654 (0.50 – 0.75)" in outline(write_report(run)).text


def test_undefined_metrics_are_dashes(run: Path) -> None:
    path = run / "evaluation" / "metrics.json"
    nothing = {"value": None, "low": None, "high": None}
    write_json(path, read_json(path) | {"macro_f1": nothing, "macro_auroc": nothing})
    page = outline(write_report(run))
    assert "–" in page.text and "macro-F1 of this split is undefined" in page.text


def test_a_log_cut_off_by_a_kill_is_read_up_to_there(run: Path) -> None:
    path = run / "diffusion" / "log.jsonl"
    write_text(path, path.read_text()[:-30])
    assert [row["step"] for row in read_run(run).logs["diffusion"]] == list(range(1, 701))


def test_broken_files_are_read_from_the_prepared_images_too(run: Path) -> None:
    store, broken = run.parent / "store", [{"path": "x.png", "reason": "it is empty"}]
    write_json(run / "data", {"name": "scans", "key": "0", "store": str(store)})
    assert (read_run(run).data or {})["broken"] is None
    write_json(store / "store.json", {"broken": broken})
    assert (read_run(run).data or {})["broken"] == broken


def test_no_folder_and_a_damaged_file_are_plain_errors(run: Path) -> None:
    with pytest.raises(InputError, match="There is no run folder"):
        write_report(run / "absent")
    (run / "selection.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="selection.json is damaged"):
        write_report(run)
    write_json(run / "selection.json", None)
    (run / "experiment.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(InputError, match="experiment.yaml is damaged"):
        write_report(run)


def test_probes_of_a_training_are_a_curve_per_block(run: Path) -> None:
    path = run / "diffusion" / "log.jsonl"
    assert "Linear probes of the EMA weights" not in outline(write_report(run)).text
    for step, value in ((0, 0.3), (350, 0.5), (700, 0.6)):
        block = {"macro_f1": {"value": value, "low": value - 0.1, "high": value + 0.1}}
        row = {"step": step, "event": "probe", "timestep": 100, "train": 600, "n": 84}
        row |= {"blocks": {"middle-block": block, "up-block": block}, "macro_f1": value}
        path.write_text(path.read_text() + json.dumps(row) + "\n")
    page = outline(write_report(run))
    assert "t = 100; fitted on 600 training images, measured on 84 validation images" in page.text
    assert "middle-block" in page.text and "up-block" in page.text and "macro-F1 of the probe" in page.text


def test_a_pretraining_has_no_classifier_to_speak_of(run: Path) -> None:
    for name in ("evaluation", "classifier", "selection.json"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    write_json(run / "data", {"name": "a, b", "key": "0", "store": "gone", "broken": [], "sets": [{"name": "a"}]})
    page = outline(write_report(run))
    assert "A pre-training without labels" in page.text and "diffusion model without labels: convolutional" in page.text
    for said in ("dcube select", "dcube classify", "dcube evaluate", "Step 2", "One row per class", "Selected blocks"):
        assert said not in page.text


@pytest.mark.parametrize("on", [0, 1])
def test_what_a_pretrained_cnn_lends_is_said(run: Path, on: int) -> None:
    file = run / "experiment.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["diffusion"]["align"]["weight"], settings["classifier"]["second_reader"] = on, 16 * on
    settings["classifier"]["covariance_readers"] = ["cnn", "step1"] * on
    file.write_text(yaml.safe_dump(settings))
    text = outline(write_report(run)).text
    for said in (
        "map of stride 16, weight 1", "linear probe of tf_efficientnet_lite0 as it came, map of stride 16",
        "covariances of all maps of tf_efficientnet_lite0 as it came", "covariances of all maps of step 1",
        "the network's and every reader's, joined evenly",
    ):  # fmt: skip
        assert (said in text) == bool(on), said
