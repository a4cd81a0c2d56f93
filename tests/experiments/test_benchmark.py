"""Equal means equal: splits, sizes, budgets, tuning; choice by validation alone; the test split once, at the end."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import benchmark_child
import numpy as np
import pytest
from benchmark_child import MODELS, SIZE, benchmark_of, predictions

from dcube.data.dataset import ImageData
from dcube.errors import InputError
from dcube.evaluation.metrics import macro_f1
from dcube.experiments.benchmark.field import FLOORS, MOST_TRIES, STEP1, parts_of, title
from dcube.experiments.benchmark.run import Benchmark
from dcube.experiments.benchmark.summary import _ranks, rows_of_seeds, summarise
from dcube.experiments.benchmark.tables import as_csv, as_markdown
from dcube.files import read_json
from dcube.report.studies import field_figure
from dcube.training.budget import Budget
from tiny import tiny_data


class Looks:
    """Which rows were looked at, at which sizes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rows: set[int] = set()
        self.sizes: set[int] = set()
        images = ImageData.images

        def seen(data: ImageData, indices: Any, size: int) -> Any:
            self.rows |= set(np.asarray(indices).tolist())
            self.sizes.add(size)
            return images(data, indices, size)

        patch.setattr(ImageData, "images", seen)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return tiny_data(tmp_path_factory.mktemp("many") / "store", counts=(24, 20, 16))


@pytest.fixture(scope="module")
def done(many: ImageData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Benchmark, dict[str, Looks]]:
    """A finished benchmark, and what was looked at before and at the opening of the test split."""
    held, looks = benchmark_of(many.store.directory, tmp_path_factory.mktemp("out")), {}
    for name, task in (("train", held.train), ("test", lambda: held.open_test(again=False))):
        with pytest.MonkeyPatch.context() as patch:
            looks[name] = Looks(patch)
            task()
    return held, looks


def test_equal_means_equal(done: tuple[Benchmark, dict[str, Looks]]) -> None:
    """One split, one size, one budget, the same number of configurations for whoever has any."""
    held, looks = done
    assert looks["train"].sizes == looks["test"].sizes == {SIZE}
    steps = set()
    for unit in held.cells():
        data, found = unit.data(), read_json(unit.result)
        assert data.splits.tolist() == held.unit("tiny", MODELS[0], 0).data().splits.tolist()
        assert found["train_images"] == len(data.indices("train"))
        if unit.model in ("test_resnet", "dcube"):
            steps.add(found["planned"])
        tried = read_json(held.choice_file("tiny", unit.model))["tried"]
        assert len(tried) == (1 if unit.model in FLOORS or parts_of(unit.model) else MOST_TRIES)
    assert max(steps) - min(steps) <= 1, "D-Cube's two steps together are one budget"
    shared = {unit.step1.directory for unit in held.cells() if unit.model in STEP1}
    assert len(shared) == 2, "one step 1 for D-Cube and the other uses"


def test_nothing_but_the_end_sees_the_test_split(done: tuple[Benchmark, dict[str, Looks]]) -> None:
    held, looks = done
    test = set(held.cells()[0].data().indices("test").tolist())
    assert test and not looks["train"].rows & test
    assert test < looks["test"].rows


def test_the_choice_is_the_best_by_validation(done: tuple[Benchmark, dict[str, Looks]]) -> None:
    held, _ = done
    for model in MODELS:
        choice = read_json(held.choice_file("tiny", model))
        figures = []
        for i in range(len(choice["tried"])):
            unit = held.unit("tiny", model, 0, i)
            data = unit.data()
            rows = data.indices("val")
            figures.append(macro_f1(data.labels[rows], unit.read("val").argmax(1), 3))
        assert figures[choice["configuration"]] == max(figures)
        assert [row["macro_f1"] for row in choice["tried"]] == pytest.approx(figures)
    assert not list(held.out.rglob("*.f16")) and not list(held.out.rglob("checkpoint"))
    assert {p.parent.name for p in held.out.rglob("*.safetensors")} == {"step1"}, "weights go when the test is done"


def test_two_systems_joined(done: tuple[Benchmark, dict[str, Looks]]) -> None:
    """The geometric mean of what they say as they were chosen, at the price of both."""
    held, _ = done
    for seed in (0, 1):
        found = {
            model: held.unit("tiny", model, seed, read_json(held.choice_file("tiny", model))["configuration"])
            for model in ("test_resnet", "knn", "test_resnet+knn")
        }
        for split in ("val", "test"):
            one, other, both = (found[model].read(split) for model in found)
            mean = np.sqrt(one.clip(1e-6) * other.clip(1e-6))
            np.testing.assert_allclose(both, mean / mean.sum(1, keepdims=True), atol=2e-6)
        costs = [read_json(unit.result) for unit in found.values()]
        assert costs[2]["seconds"] == costs[0]["seconds"] + costs[1]["seconds"]
        assert costs[2]["parameters"] == costs[0]["parameters"] + costs[1]["parameters"]
    assert title("test_resnet+knn") == "test_resnet and nearest neighbours on the CNN's features"


def test_a_finished_benchmark_is_not_repeated(
    done: tuple[Benchmark, dict[str, Looks]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, _ = done
    before = {p: p.stat().st_mtime_ns for p in held.out.rglob("*") if p.is_file()}
    looks = Looks(monkeypatch)
    held.train()
    assert held.open_test(again=False) == 1
    assert not looks.rows and before == {p: p.stat().st_mtime_ns for p in held.out.rglob("*") if p.is_file()}


def test_the_table_says_what_the_cells_say(done: tuple[Benchmark, dict[str, Looks]]) -> None:
    held, _ = done
    summary = summarise(held, "test")
    found = summary["sets"]["tiny"]
    assert {row["model"] for row in found["systems"]} == set(MODELS) and found["reference"] == "dcube"
    values = [row["metrics"]["macro_f1"]["value"] for row in found["systems"]]
    assert values == sorted(values, reverse=True)
    rows = rows_of_seeds(held, "test")
    assert len(rows) == 2 * len(MODELS)
    for row in found["systems"]:
        seeds = [one["macro_f1"] for one in rows if one["model"] == row["model"]]
        assert row["metrics"]["macro_f1"]["value"] == pytest.approx(np.mean(seeds), abs=1e-5)
        own = next(one for one in found["systems"] if one["model"] == "dcube")
        if row is not own:
            gap = row["metrics"]["macro_f1"]["value"] - own["metrics"]["macro_f1"]["value"]
            assert row["difference"]["value"] == pytest.approx(gap) and 0 <= row["mcnemar"]["p"] <= 1
    plan = held.terms.described() | {"seeds": [0, 1], "test_evaluations": 1, "machine": "a machine"}
    text = as_markdown(summary, plan)
    assert text.count("**RANDOM**") >= 3 and "2 epochs each" in text and f"{max(values):.3f}" in text
    assert "test split, opened 1 time(s)" in text and "tried on seed 0" in text and "(2)" in text
    header, *lines = as_csv(rows).splitlines()
    assert "milliseconds" in header and "configurations_tried" in header and len(lines) == len(rows)
    assert field_figure(summary["sets"]).count("<svg") == 1


def test_several_sets_are_ranked_without_a_claim(done: tuple[Benchmark, dict[str, Looks]]) -> None:
    held, _ = done
    one = summarise(held, "test")
    assert one["ranks"] is None
    ranks = _ranks([one["sets"]["tiny"]] * 2)
    assert ranks is not None and ranks["p"] is None and len(ranks["systems"]) == len(MODELS)
    plan = held.terms.described() | {"seeds": [0, 1], "test_evaluations": 0, "machine": "a machine"}
    text = as_markdown(one | {"ranks": ranks}, plan)
    assert "no significance is claimed" in text and "too good" in text


def test_a_second_look_is_refused_and_counted(many: ImageData, tmp_path: Path) -> None:
    store = many.store.directory
    held = benchmark_of(store, tmp_path, ("majority",), (0,))
    held.train()
    assert held.open_test(again=False) == 1
    more = benchmark_of(store, tmp_path, ("majority", "statistics"), (0,))
    with pytest.raises(InputError, match="already opened 1 time.*statistics is new"):
        more.check_test(again=False)
    more.train()
    with pytest.raises(InputError, match="already opened"):
        more.open_test(again=False)
    assert more.open_test(again=True) == 2
    with pytest.raises(InputError, match="already opened 2 time.*leave --no-test out"):
        held.check_closed()
    assert held.open_test(again=False) == 2, "nothing new: no look"


def test_a_new_data_set_may_join_an_opened_benchmark(many: ImageData, tmp_path: Path) -> None:
    """Its test split was seen by nobody, and opening it is none of the first set's."""
    first = benchmark_of(many.store.directory, tmp_path, ("majority",), (0,))
    first.train()
    assert first.open_test(again=False) == 1
    both = Benchmark(first.stores | {"other": many.store}, first.terms, tmp_path, ("majority",), (0,), jobs=1)
    both.check_test(again=False)
    both.train()
    assert both.open_test(again=False) == 1 and both.openings("tiny") == both.openings("other") == 1
    more = Benchmark({"other": many.store}, first.terms, tmp_path, ("majority", "statistics"), (0,), jobs=1)
    with pytest.raises(InputError, match="split of other was already opened 1 time"):
        more.check_test(again=False)


def test_a_part_of_few_steps_is_told(done: tuple[Benchmark, dict[str, Looks]]) -> None:
    """D-Cube's shorter step counts, not the sum of both."""
    held, _ = done
    for unit in held.cells():
        found = read_json(unit.result)
        one = read_json(unit.step1.result)["steps"] if unit.model in STEP1 else 0
        assert found["fewest"] == (min(one, found["steps"] - one) if unit.model == "dcube" else found["steps"]), unit
    text = as_markdown(summarise(held, "test"), held.terms.described() | {
        "seeds": [0, 1], "test_evaluations": 1, "machine": "a machine",
    })  # fmt: skip
    assert "steps" in next(line for line in text.splitlines() if line.startswith("| **D-Cube** |"))


def test_a_budget_of_time(many: ImageData, tmp_path: Path) -> None:
    """Steps from the measured pace; the clock agrees with the budget; dcube_long has its own step 1, and says so."""
    budget = Budget(seconds=3.0)
    models = ("test_resnet", "dcube", "dcube_long")
    held = benchmark_of(
        many.store.directory, tmp_path, models, (0,), budget=budget, long=Budget(seconds=4.5), tries=1
    )  # fmt: skip
    held.train()
    found = {unit.model: read_json(unit.result) for unit in held.cells()}
    for model in models[:2]:
        assert 0 < found[model]["seconds"] < 1.3 * 3.0 and found[model]["planned"] > 2, found[model]
    assert 1.5 < found["dcube_long"]["seconds_step1"] < 1.3 * 4.5
    assert found["dcube_long"]["seconds_step1"] > found["dcube"]["seconds_step1"]
    assert (tmp_path / "tiny" / "prepared" / "test_resnet" / "train" / "runtime.json").is_file()


def test_scarce_training_is_the_same_for_all_of_a_seed(many: ImageData, tmp_path: Path) -> None:
    held = benchmark_of(many.store.directory, tmp_path, ("majority", "statistics"), (0, 1), share=0.5, rarest=0.3)
    held.train()
    splits = {(unit.model, unit.seed): unit.data().splits.tolist() for unit in held.cells()}
    assert splits["majority", 0] == splits["statistics", 0] != splits["statistics", 1]
    whole = benchmark_of(many.store.directory, tmp_path).unit("tiny", "majority", 0).data().splits
    for cut in splits.values():
        kept = np.array(cut)
        assert ((kept == whole) | ((whole == "train") & (kept == ""))).all()
        assert 0.3 < (kept == "train").sum() / (whole == "train").sum() < 0.55


MOMENTS = ("seed-0/step1/checkpoint/step-*", "seed-0/test_resnet/configuration-1/train/checkpoint/step-00000003",
           "seed-0/dcube/configuration-0/step2/checkpoint/step-00000002", "seed-1/test_resnet/*/cell.json")  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_and_continued_is_the_same(
    many: ImageData, done: tuple[Benchmark, dict[str, Looks]], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmark_child"])
    arguments, kills = (str(many.store.directory), str(tmp_path)), 0
    for moment in (*MOMENTS, None):
        process = context.Process(target=benchmark_child.work, args=arguments)
        process.start()
        until = time.monotonic() + 240
        while moment and process.is_alive() and not list((tmp_path / "tiny").glob(moment)):
            assert time.monotonic() < until
            time.sleep(0.002)
        if moment and process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGKILL)
        process.join(240)
        kills += process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0 and kills >= 3
    whole, pieces = predictions(done[0]), predictions(benchmark_of(many.store.directory, tmp_path))
    assert whole.keys() == pieces.keys()
    different = [name for name in whole if not np.array_equal(whole[name], pieces[name])]
    assert not different
