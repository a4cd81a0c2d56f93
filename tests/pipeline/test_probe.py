"""The probe as an instrument: it tells features that hold the label from those that do not."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_fit import PHANTOM, done, refused

from dcube.diffusion.train import load_diffusion, untrained
from dcube.evaluation.linear import linear_probe
from dcube.evaluation.metrics import macro_f1
from dcube.experiments.probe import gaussianity_agreement
from dcube.runs import Run
from dcube.stages import open_data, probe


@pytest.mark.parametrize(("strength", "low", "high"), [(2.0, 0.95, 1.0), (0.0, 0.1, 0.55)])
def test_linear_probe_finds_what_is_there_and_nothing_else(strength: float, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    features = rng.standard_normal((300, 400)).astype(np.float32)
    features[:, :30] += strength * np.eye(3, dtype=np.float32)[labels].repeat(10, axis=1)
    groups = np.array([f"g{i // 2}" for i in range(300)])
    p = linear_probe(features[:200], labels[:200], groups[:200], features[200:], classes=4, components=64)
    assert p.shape == (100, 4) and np.allclose(p.sum(1), 1) and (p[:, 3] == 0).all()
    assert low <= macro_f1(labels[200:], p.argmax(1), 3) <= high


def within(row: dict[str, str], name: str) -> bool:
    """A figure in its interval; this validation split has one group of each class, so there may be none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return low == high == "" or float(low) <= float(row[name]) <= float(high)


def test_probe_of_a_run(fitted: Path, tmp_path: Path) -> None:
    run = shutil.copytree(fitted, tmp_path / "run")
    out = done("probe", run, "--timestep", 3, "--timestep", 7).stdout
    rows = list(csv.DictReader((run / "probe" / "probe.csv").open()))
    blocks = ["down1", "down2", "mid", "up2", "up1"]
    assert len(rows) == 5 + 4 * len(blocks) * 2
    trained = [row["block"] for row in rows if row["model"] == "trained" and row["timestep"] == "3"]
    assert trained == [*blocks, "covariances"]
    macro = {(row["model"], row["block"], row["timestep"]): float(row["macro_f1"]) for row in rows}
    [pixels], [cnn] = ([macro[place] for place in macro if place[0] == model] for model in ("pixels", "cnn"))
    for row in rows:
        place = row["model"].replace("trained", "untrained"), row["block"], row["timestep"]
        others = {"over_untrained": macro.get(place, 0), "over_pixels": pixels, "over_cnn": cnn}
        for name, other in others.items():
            if row["model"] in ("trained", "trained+cnn"):
                assert float(row[name]) == pytest.approx(float(row["macro_f1"]) - other, abs=2e-4)
                assert within(row, name)
            else:
                assert row[name] == ""
    found = json.loads((run / "probe" / "probe.json").read_text())["gaussianity"]
    assert found["spearman"] is None or -1 <= found["spearman"] <= 1
    assert found["best_block"] in blocks and set(found["selected"]) <= set(blocks)
    assert "pixels" in out and "rank correlation" in out and "images of the val split" in out.splitlines()[0]
    assert (run / "probe" / "probe.svg").read_text().startswith("<?xml")
    for row in rows:
        assert within(row, "macro_f1")
    assert "timestep 20" in refused("probe", run, "--timestep", 20)
    done("diffuse", run, "--set", "diffusion.optimizer.steps=1")
    assert not (run / "probe").exists(), "a probe of former weights"


def test_of_many_images_it_takes_some(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(shutil.copytree(fitted, tmp_path / "run"))
    data = open_data(run)
    train, asked = len(data.indices("train")), len(data.indices("val"))
    whole = probe(run, (3,))
    assert (whole["train"], whole["n"]) == (train, asked)
    monkeypatch.setattr("dcube.experiments.probe.MOST", most := min(train, asked) - 1)
    some = probe(run, (3,))
    assert (some["train"], some["n"]) == (most, most)
    assert some == probe(run, (3,)), "the same ones each time"


def test_the_untrained_network_is_the_one_step_1_began_with(tmp_path: Path, recipe: Path) -> None:
    out = tmp_path / "begun"
    done("fit", PHANTOM, "--out", out, "--recipe", recipe, "--max-minutes", 0, "--no-test")
    begun = load_diffusion(out / "diffusion" / "model.safetensors")
    again = untrained(begun.config, begun.channels, begun.classes, 0)
    for (name, a), b in zip(begun.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_agreement_is_one_where_the_least_gaussian_block_probes_best() -> None:
    blocks = [{"name": f"b{i}", "n": 64, "D": d} for i, d in enumerate((0.05, 0.2, 0.1))]
    rows = [
        {"model": model, "block": f"b{i}", "macro_f1": {"value": value}}
        for model, values in (("trained", (0.5, 0.9, 0.7)), ("untrained", (1.0, 0.1, 0.1)))
        for i, value in enumerate(values)
    ]
    found = gaussianity_agreement({"blocks": blocks, "selected": [1]}, rows)
    assert found == {"spearman": pytest.approx(1.0), "best_block": "b1", "selected": ["b1"]}
