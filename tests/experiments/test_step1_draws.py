"""Several draws of few labels: each has its own, what was learned without labels is shared."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcube.data.dataset import ImageData
from dcube.errors import InputError
from dcube.experiments.step1 import LABELS, PART, SYSTEMS, WHOLE, Unit, cell_of, pooled, study
from dcube.experiments.step1_summary import PROBE, markdown, read_cell, summarise
from dcube.files import write_json
from dcube.training.state import load_weights
from tiny import tiny_data, tiny_experiment


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return tiny_data(tmp_path_factory.mktemp("store"), counts=(18, 16, 15), given=True)


def run(data: ImageData, out: Path, **changes: Any) -> list[Unit]:
    settings = tiny_experiment(features={"top_k": 1}, classifier={"lambda_consistency": 0.0})
    asked: dict[str, Any] = {"folds": 2, "seeds": (0,), "jobs": 1, "timesteps": (3,), "relatives": False}
    return study({"tiny": data.store}, settings, out, **asked | {"quarter": False, "part": 0.5} | changes)


def test_every_draw_has_labels_of_its_own_and_the_same_held_out_images(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[Unit] = []
    monkeypatch.setattr("dcube.experiments.step1.run_unit", order.append)
    units = run(data, tmp_path / "out", quarter=True, unlabelled=True, draws=3, test=True, seeds=(0, 1))
    assert {(unit.share, unit.draw) for unit in units if not unit.draw} == {(s, 0) for s in (WHOLE, PART, LABELS)}
    assert {unit.draw for unit in units if unit.share != WHOLE} == {0, 1, 2}
    assert {unit.draw for unit in units if unit.share == WHOLE} == {0}
    assert len({unit.directory for unit in units}) == len(units)
    drawn: dict[tuple[str, int, int | None], list[Unit]] = {}
    for unit in units:
        drawn.setdefault((unit.share, unit.settings.seed, unit.fold), []).append(unit)
    for (share, *_), same in drawn.items():
        cells = [cell_of(unit) for unit in same]
        assert len({tuple(cell.held_out) for cell in cells}) == 1
        assert len({tuple(cell.data.indices("train")) for cell in cells}) == len(same) == (1 if share == WHOLE else 3)
        if share == LABELS:
            pools = {tuple(cell.unlabelled.indices("train")) for cell in cells if cell.unlabelled}
            assert len(pools) == len({unit.shared for unit in same}) == 1
    alone = [str(unit) for unit in order if not unit.arms]
    parts = [f"tiny/labels/seed-{seed}/unlabelled/{part}" for part in ("fold-0", "fold-1", "test") for seed in (0, 1)]
    assert sorted(alone) == sorted(parts), "one training without labels for all draws of a fold"
    first_test = next(i for i, unit in enumerate(order) if unit.fold is None)
    assert all(unit.fold is None for unit in order[first_test:])


def test_what_was_learned_without_labels_is_shared_and_later_draws_cost_only_themselves(
    data: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    run(data, out, whole=False, unlabelled=True)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    units = run(data, out, whole=False, unlabelled=True, draws=2)
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    assert before.items() <= after.items()
    assert {p.relative_to(out).parts[3] for p in after.keys() - before.keys()} == {"draw-1"}
    weights = sorted(p.relative_to(out / "tiny/labels/seed-0") for p in out.rglob("*.safetensors"))
    shared = [Path(f"unlabelled/fold-{k}/model.safetensors") for k in (0, 1)]
    own = [Path(f"{draw}fold-{k}/step1/trained/model.safetensors") for k in (0, 1) for draw in ("", "draw-1/")]
    assert weights == sorted([*shared, *own])
    one, two = (load_weights(unit.directory / "step1/trained/model.safetensors")[0] for unit in (units[0], units[2]))
    assert units[0].fold == units[2].fold and any((one[name] != two[name]).any() for name in one)
    first, second = (read_cell(cell_of(unit)) for unit in (units[0], units[2]))
    assert not np.array_equal(first[PROBE + "pixels"], second[PROBE + "pixels"]), "other labels, another answer"

    repeats, labels, _ = pooled(units, read_cell)
    assert list(repeats["D-Cube"]) == [(0, 0), (0, 1)]
    assert all(p.shape == (len(labels), 3) for p in repeats["D-Cube"].values())
    part = summarise(units, bootstrap=100)["tiny"][LABELS]
    assert (part["seeds"], part["draws"]) == ([0], 2) and len(part["macro_f1"]["D-Cube"]["repeats"]) == 2
    assert "D-Cube - no step 1" in markdown({"tiny": {LABELS: part}}, 0.5)


def test_what_was_drawn_is_told_whatever_is_asked_next(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def answer(unit: Unit) -> None:
        for system in SYSTEMS:
            write_json(unit.directory / "step2" / f"{system}.json", {})

    monkeypatch.setattr("dcube.experiments.step1.run_unit", answer)

    def told(**asked: Any) -> set[tuple[str, int, bool]]:
        return {(unit.share, unit.draw, unit.fold is None) for unit in run(data, out, **asked)}

    three = {(PART, draw, False) for draw in range(3)}
    assert told(whole=False, quarter=True, draws=3) == three
    assert told() == three | {(WHOLE, 0, False)}
    labels = {(LABELS, draw, False) for draw in range(2)} | {(LABELS, draw, True) for draw in range(2)}
    assert told(whole=False, unlabelled=True, draws=2, test=True) == three | {(WHOLE, 0, False)} | labels
    assert told(whole=False, unlabelled=True) == three | {(WHOLE, 0, False)} | labels
    shutil.rmtree(out / "tiny/quarter/seed-0/draw-2/fold-1")
    assert (PART, 2, False) not in told() and (PART, 1, False) in told(), "half a draw is none"


def test_the_whole_training_part_is_not_drawn(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^--draws are of a part.*leave out --no-quarter, or give --unlabelled"):
        run(data, tmp_path / "out", draws=2)
    assert not (tmp_path / "out").exists()
