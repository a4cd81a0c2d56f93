"""The study of step 1: honest folds, results kept, figures pooled as they say."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.errors import InputError
from dcube.evaluation.metrics import macro_f1
from dcube.experiments.step1 import (
    ARMS,
    LABELS,
    PART,
    PLAIN,
    SHARES,
    SYSTEMS,
    TRAINED,
    UNTRAINED,
    WHOLE,
    Unit,
    cell_of,
    pooled,
    run_unit,
    study,
)
from dcube.experiments.step1_cell import MIDDLE, TEXTURES, Arm, Cell, best_blocks, fold_data
from dcube.experiments.step1_summary import ALL, LATE, OWN, PROBE, SEEN, _difference, markdown, read_cell, summarise
from dcube.report.studies import differences_figure
from dcube.training.state import load_weights
from tiny import tiny_data, tiny_experiment


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return tiny_data(tmp_path_factory.mktemp("store"), counts=(18, 16, 15))


@pytest.fixture(scope="module")
def done(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Unit]]:
    out = tmp_path_factory.mktemp("study")
    return out, run(data, out)


def run(data: ImageData, out: Path, **changes: Any) -> list[Unit]:
    settings = tiny_experiment(features={"top_k": 1}, classifier={"lambda_consistency": 0.0})
    asked: dict[str, Any] = {"folds": 2, "seeds": (0,), "jobs": 1, "timesteps": (3,), "quarter": False}
    return study({"tiny": data.store}, settings, out, **asked | changes)


def test_folds_hold_each_image_out_once_and_leave_the_test_split_alone(data: ImageData) -> None:
    store = data.store
    given = [split == "test" for split in store.given_splits]
    held_out: list[int] = []
    for fold in range(3):
        part = fold_data(store, 1, 3, fold)
        train, asked = part.indices("train"), part.indices("test")
        assert not {part.groups[i] for i in train} & {part.groups[i] for i in asked}
        assert not any(given[i] for i in (*train, *asked))
        held_out += asked.tolist()
        small = fold_data(store, 1, 3, fold, part=0.25)
        assert small.indices("test").tolist() == asked.tolist()
        assert set(small.indices("train")) < set(train) and 0.1 < len(small.indices("train")) / len(train) < 0.4
    assert sorted(held_out) == [i for i, test in enumerate(given) if not test]


def test_every_cell_answers_every_question(done: tuple[Path, list[Unit]]) -> None:
    _, units = done
    assert len(units) == 2
    for unit in units:
        cell = cell_of(unit)
        found = read_cell(cell)
        arms = list(ARMS)
        names = [*(PROBE + arm for arm in arms), *(f"{PROBE}{arm} + CNN" for arm in arms)]
        names += [*SYSTEMS, *(f"{system}, two readers" for system in SYSTEMS)]
        names += [f"{LATE}{PROBE}{probe}" for probe in (TRAINED, UNTRAINED, "pixels")]
        names += [LATE + system for system in SYSTEMS if system != "fine-tuned CNN"]
        names += [f"{system}{own}" for own in (OWN, SEEN) for system in ("D-Cube", "untrained step 1")]
        names += [f"{PROBE}{what}{TEXTURES}" for what in (*arms, "cnn")] + [f"{system}{ALL}" for system in SYSTEMS]
        assert set(found) == {*names, PROBE + "pixels", PROBE + "cnn", PROBE + MIDDLE}
        for probabilities in found.values():
            assert probabilities.shape == (len(cell.held_out), 3)
            np.testing.assert_allclose(probabilities.sum(1), 1, atol=2e-4)  # rounded
        assert not np.array_equal(found[PROBE + TRAINED], found[PROBE + UNTRAINED])
        assert not np.array_equal(found[PROBE + TRAINED + TEXTURES], found[PROBE + UNTRAINED + TEXTURES])
        joined = ("D-Cube", PROBE + MIDDLE, f"{PROBE}cnn{TEXTURES}", PROBE + TRAINED + TEXTURES)
        mean = np.prod([np.clip(found[name], 1e-6, 1) for name in joined], axis=0) ** 0.25
        np.testing.assert_allclose(found["D-Cube" + ALL], mean / mean.sum(1, keepdims=True), atol=1e-6)


def test_of_the_weights_only_step_1s_are_kept(done: tuple[Path, list[Unit]]) -> None:
    out, units = done
    assert not list(out.rglob("checkpoint")) and not list(out.rglob("*.f16"))
    weights = {file.relative_to(out) for file in out.rglob("*.safetensors")}
    arms = set(ARMS) - {UNTRAINED}
    held = [unit.directory.relative_to(out) / "step1" / arm for unit in units for arm in arms]
    assert weights == {part / "model.safetensors" for part in held}


def test_a_repeated_study_does_nothing_again(data: ImageData, done: tuple[Path, list[Unit]]) -> None:
    out, _ = done
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    run(data, out)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


def test_where_only_answers_are_left_nothing_is_trained_for_a_new_question(
    data: ImageData, done: tuple[Path, list[Unit]], tmp_path: Path
) -> None:
    """As after unpacking what was published by a version that did not ask for covariances."""
    out = shutil.copytree(done[0], tmp_path / "published")
    for part in list(out.rglob("step1")):
        shutil.rmtree(part)
    for file in out.rglob(f"*{TEXTURES}.json"):
        file.unlink()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.json")}
    found = read_cell(cell_of(run(data, out)[0]))
    assert not list(out.rglob("step1")) and all(p.stat().st_mtime_ns == then for p, then in before.items())
    assert "D-Cube" in found and PROBE + TRAINED + TEXTURES not in found


def test_the_summary_pools_out_of_fold_predictions(done: tuple[Path, list[Unit]]) -> None:
    _, units = done
    repeats, labels, _ = pooled(units, read_cell)
    part = summarise(units, bootstrap=100)["tiny"]["whole"]
    assert part["n"] == len(labels) == sum(len(cell_of(unit).held_out) for unit in units)
    expected = macro_f1(labels, repeats["D-Cube"][0, 0].argmax(1), 3)
    assert part["macro_f1"]["D-Cube"]["value"] == pytest.approx(expected)
    difference = next(d for d in part["differences"] if (d["of"], d["to"]) == ("D-Cube", "no step 1"))
    other = macro_f1(labels, repeats["no step 1"][0, 0].argmax(1), 3)
    assert difference["value"] == pytest.approx(expected - other)
    text = markdown(summarise(units, bootstrap=100))
    assert "D-Cube - no step 1" in text and f"{expected:.3f}" in text
    assert differences_figure(summarise(units, bootstrap=100)).count("<svg") == 1


def test_what_only_some_cells_were_asked_is_left_out(done: tuple[Path, list[Unit]]) -> None:
    _, units = done
    first = cell_of(units[0]).directory

    def read(cell: Cell) -> dict[str, np.ndarray]:
        found = read_cell(cell)
        return found if cell.directory == first else {k: v for k, v in found.items() if k != PROBE + PLAIN}

    repeats, _, _ = pooled(units, read)
    assert PROBE + PLAIN not in repeats and set(repeats) | {PROBE + PLAIN} == set(pooled(units, read_cell)[0])


def test_differences_pair_what_one_seed_answered() -> None:
    labels, groups = np.tile([0, 1], 10), np.arange(20).astype(str)
    right, wrong = np.eye(2)[labels], np.eye(2)[1 - labels]
    found = _difference({(1, 0): right}, {(0, 0): wrong, (1, 0): right}, labels, groups, {"bootstrap": 20})
    assert found["value"] == 0 and len(found["repeats"]) == 1


def test_the_level_of_the_intervals_is_the_settings_own(done: tuple[Path, list[Unit]]) -> None:
    wide, narrow = (
        summarise(done[1], bootstrap=100, level=level)["tiny"]["whole"]["macro_f1"].values() for level in (0.95, 0.2)
    )
    assert sum(m["high"] - m["low"] for m in narrow) < 0.5 * sum(m["high"] - m["low"] for m in wide)


def test_blocks_are_chosen_by_their_figures_inside_the_training_part() -> None:
    inside = [(0, 10, 0.5), (0, 50, 0.9), (1, 10, 0.7), (2, 10, 0.8), (3, 10, 0.1)]
    probed = {"blocks": [{"block": b, "timestep": t, "inside": f} for b, t, f in inside]}
    assert best_blocks(probed, 2) == [0, 2] and best_blocks(probed, 3) == [0, 1, 2]


def test_the_test_split_comes_last_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(tmp_path / "store", counts=(18, 16, 15), given=True)
    given = np.array(data.store.given_splits) == "test"
    order: list[Unit] = []
    monkeypatch.setattr("dcube.experiments.step1.run_unit", order.append)
    asked = run(data, tmp_path / "nothing", test=True, quarter=True, unlabelled=True)
    assert [unit.fold is None for unit in order] == sorted(unit.fold is None for unit in order)
    assert [unit.share for unit in asked if unit.fold is None] == [*SHARES]
    for unit in asked:
        held_out, train = (set(cell_of(unit).data.indices(split)) for split in ("test", "train"))
        test = set(np.flatnonzero(given))
        assert held_out and not held_out & train and not train & test
        assert held_out == test if unit.fold is None else not held_out & test
        if unit.fold is None and unit.share == WHOLE:
            assert train == set(np.flatnonzero(~given))
        if (pool := cell_of(unit).unlabelled) is not None:
            assert train < set(pool.indices("train")) and not set(pool.indices("train")) & (held_out | test)
        assert (pool is None) == (unit.share != LABELS)


def test_of_the_steps_a_tenth_have_labels(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_experiment(diffusion={"optimizer": {"steps": 80, "batch_size": 4, "warmup_steps": 30}})
    trained: list[tuple[bool, Any, int]] = []

    def note(data: ImageData, settings: Experiment, directory: Path, **how: Any) -> None:
        trained.append((how.get("unconditional", False), settings.diffusion, len(data.indices("train"))))

    monkeypatch.setattr("dcube.experiments.step1_cell.train_diffusion", note)
    monkeypatch.setattr("dcube.experiments.step1_cell.load_diffusion", lambda *_: None)
    unit = Unit("tiny", data.store.directory, tmp_path / "a #b: c", settings, 2, 0, LABELS, (3,), (TRAINED,))
    _ = Arm(cell_of(unit), TRAINED, settings).diffusion
    (alone, first, many), (_, then, few) = trained
    assert alone and many > few and first == settings.diffusion
    assert (then.optimizer.steps, then.optimizer.warmup_steps) == (8, 2)
    assert then.init == str(unit.shared / "model.safetensors")


def test_step_1_begins_without_labels_where_few_images_have_them(data: ImageData, tmp_path: Path) -> None:
    out = tmp_path / "study"
    units = [unit for unit in run(data, out, quarter=True, unlabelled=True, relatives=False) if unit.fold == 0]
    few, more = (unit for unit in units if unit.share != WHOLE)
    assert (few.share, more.share) == (PART, LABELS)
    assert sorted(p.name for p in more.directory.rglob("*.safetensors")) == ["model.safetensors"]
    _, about = load_weights(more.directory / "step1/trained/model.safetensors")
    assert about["classes"] == data.classes and about["seen"] == cell_of(more).unlabelled.seen  # type: ignore[union-attr]
    same, other = (read_cell(cell_of(unit)) for unit in (few, more))
    for name in ("untrained step 1", "no step 1", "fine-tuned CNN", PROBE + UNTRAINED, PROBE + "pixels"):
        np.testing.assert_array_equal(same[name], other[name])
    assert not np.array_equal(same["D-Cube"], other["D-Cube"])
    again = run(data, out, relatives=False)
    assert [unit.share for unit in again if unit.fold == 0] == [*SHARES], "what is done is told, asked for or not"
    (out / "tiny/quarter/seed-0/fold-1/step2/D-Cube.json").unlink()
    assert {unit.share for unit in run(data, out, relatives=False)} == {WHOLE, LABELS}, "but not in part"
    summary = summarise(units, bootstrap=100)
    assert list(summary["tiny"]) == [*SHARES] and "the rest without labels" in markdown(summary)


def test_a_study_of_another_part_alone(data: ImageData, tmp_path: Path) -> None:
    out = tmp_path / "study"
    units = run(data, out, whole=False, unlabelled=True, part=0.5)
    assert {unit.share for unit in units} == {LABELS}
    halves = [cell_of(unit) for unit in units]
    quarters = [cell_of(replace(unit, part=0.25)) for unit in units]
    for half, quarter in zip(halves, quarters, strict=True):
        assert len(half.data.indices("train")) > 1.5 * len(quarter.data.indices("train"))
    title = "## Half of the training part, and step 1 on all of it, the rest without labels"
    assert markdown(summarise(units, bootstrap=100), 0.5).startswith(title)
    with pytest.raises(InputError, match="^Nothing is asked"):
        run(data, out, whole=False)
    with pytest.raises(InputError, match="fewer than two groups of images in 2 % of a training part.*larger --share"):
        run(data, out, whole=False, quarter=True, part=0.02)


def test_the_test_split_has_a_table_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(tmp_path / "store", counts=(18, 16, 15), given=True)
    units = run(data, tmp_path / "out", test=True, relatives=False)
    worked: list[Unit] = []
    with monkeypatch.context() as patch:
        patch.setattr("dcube.experiments.step1.run_unit", worked.append)
        assert [str(unit) for unit in run(data, tmp_path / "out", relatives=False)] == [str(unit) for unit in units]
    assert worked and all(unit.fold is not None for unit in worked)  # no further look without being asked
    summary = summarise(units, bootstrap=100)
    parts = summary["tiny"]
    assert list(parts) == ["whole", "whole, test"] and parts["whole, test"]["n"] == 3
    repeats, labels, _ = pooled([unit for unit in units if unit.fold is None], read_cell)
    expected = macro_f1(labels, repeats["D-Cube"][0, 0].argmax(1), 3)
    assert parts["whole, test"]["macro_f1"]["D-Cube"]["value"] == pytest.approx(expected)
    text = markdown(summary)
    assert "## The test split" in text and "macro-F1, test split" in text


def test_data_without_a_test_split_are_refused(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="brings no test split"):
        run(data, tmp_path / "out", test=True)
    assert not (tmp_path / "out").exists()


def test_where_f_sub_is_step_1_itself_only_d_cube_begins_with_a_trained_one(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rivals' begins as the untrained network, and what is called a CNN stays one."""
    begun: dict[str, tuple[str, str, int]] = {}

    def note(cell: Cell, name: str, settings: Experiment, arm: Arm, blocks: list[int]) -> None:
        begun[name] = arm.name, settings.classifier.sub_network, len(blocks)

    monkeypatch.setattr("dcube.experiments.step1.classify_system", note)
    settings = tiny_experiment(features={"top_k": 1}, classifier={"sub_network": "step1"})
    unit = Unit("tiny", data.store.directory, tmp_path, settings, 2, 0, WHOLE, (3,), (TRAINED, UNTRAINED))
    run_unit(unit)
    assert begun == {
        "D-Cube": (TRAINED, "step1", 1), "untrained step 1": (UNTRAINED, "step1", 1),
        "no step 1": (UNTRAINED, "step1", 0), "fine-tuned CNN": (UNTRAINED, "cnn", 0),
    }  # fmt: skip
