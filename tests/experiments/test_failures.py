"""A training that fails is a row of the table; what was given wrongly ends the benchmark."""

from pathlib import Path
from typing import Any

import pytest
from benchmark_child import benchmark_of

from dcube.benchmark import _check_folder, _check_weights, _joined, make_terms
from dcube.data.dataset import ImageData
from dcube.errors import DCubeError, InputError, MemoryShort
from dcube.experiments.benchmark import cell
from dcube.experiments.benchmark.summary import rows_of_seeds, summarise
from dcube.experiments.benchmark.tables import as_markdown
from dcube.experiments.benchmark.terms import Unit
from dcube.files import read_json, write_json
from tiny import tiny_data


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return tiny_data(tmp_path_factory.mktemp("many") / "store", counts=(24, 20, 16))


def test_a_failed_training_is_a_result(
    many: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written down, its other configuration is chosen, and with none left the row says so."""
    real = cell.NETWORK.train

    def diverge(unit: Any, data: ImageData) -> Any:
        if unit.model == "test_vit" or unit.configuration == 0:
            raise DCubeError(f"The loss is not finite: {unit.directory / 'log'}.")
        return real(unit, data)

    monkeypatch.setattr(cell, "NETWORK", cell.Contestant(diverge, cell.NETWORK.predict))
    held = benchmark_of(many.store.directory, tmp_path, ("test_resnet", "test_vit"), (0,))
    held.train()
    held.open_test(again=False)
    assert read_json(held.choice_file("tiny", "test_resnet"))["configuration"] == 1
    summary = summarise(held, "test")
    rows = {row["model"]: row for row in summary["sets"]["tiny"]["systems"]}
    said = [f"The loss is not finite: {Path('tiny/seed-0/test_vit', f'configuration-{i}', 'log')}." for i in (0, 1)]
    assert rows["test_vit"]["failed"] in said and "metrics" in rows["test_resnet"]
    text = as_markdown(summary, held.terms.described() | {"seeds": [0], "test_evaluations": 1, "machine": "a machine"})
    assert "failed: The loss is not finite: tiny" in text and str(tmp_path) not in text
    assert {row["model"]: row.get("failed") for row in rows_of_seeds(held, "test")}["test_vit"]


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_memory_that_does_not_suffice_is_a_row_too(
    many: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Whether the timed steps or the training run out of it; what was given wrongly still ends the benchmark."""
    real = {"prepare": cell.systems.prepare, "train": cell.NETWORK.train}

    def greedy(error: Exception) -> Any:
        def call(unit: Any, *rest: Any) -> Any:
            if unit.model == "test_vit":
                raise error
            return real[stage](unit, *rest)

        return call

    def replace(error: Exception) -> None:
        if stage == "prepare":
            monkeypatch.setattr(cell.systems, "prepare", greedy(error))
        else:
            monkeypatch.setattr(cell, "NETWORK", cell.Contestant(greedy(error), cell.NETWORK.predict))

    replace(MemoryShort("The memory of the machine does not suffice; lower it."))
    held = benchmark_of(many.store.directory, tmp_path / "short", ("test_resnet", "test_vit"), (0,))
    held.train()
    _check_weights(held)  # as the command does when it is repeated
    held.open_test(again=False)
    rows = {row["model"]: row for row in summarise(held, "test")["sets"]["tiny"]["systems"]}
    assert "does not suffice" in rows["test_vit"]["failed"] and "metrics" in rows["test_resnet"]
    replace(InputError("There is no such file."))
    with pytest.raises(InputError, match="no such file"):
        benchmark_of(many.store.directory, tmp_path / "wrong", ("test_vit",), (0,)).train()


def test_the_table_says_how_sure_it_is(many: ImageData, tmp_path: Path) -> None:
    """Its level, what seeds tell, the optimiser, and few groups; none of it where it is not so."""
    held = benchmark_of(many.store.directory, tmp_path, ("majority", "statistics"), (0,))
    held.train()
    held.open_test(again=False)
    summary, about = summarise(held, "test"), {"seeds": [0], "test_evaluations": 1, "machine": "a machine"}
    plan = held.terms.described() | about
    text = as_markdown(summary, plan)
    assert "95 % intervals by bootstrap over groups. " in text and "- 32 px" in text and "AdamW; up to 2" in text
    assert "Few groups (" in text and "intervals are too narrow there" in text
    plan["settings"]["evaluation"]["level"] = 0.6
    plan["settings"]["classifier"]["optimizer"]["name"] = "sgd"
    summary["sets"]["tiny"]["groups_per_class"] = {"one": 10, "two": 11}
    text = as_markdown(summary, plan | {"seeds": [0, 1]})
    assert "60 % intervals by bootstrap over groups and by what the seeds differ by." in text and "SGD; up to" in text
    assert "Few groups" not in text


def test_first_weights_that_changed_under_their_name_end_it(tmp_path: Path) -> None:
    weights = tmp_path / "own=1.pth"
    weights.write_bytes(b"one")
    terms = make_terms(overrides=[f"classifier.cnn_weights={weights}"], weights=[f"resnet18={weights}"])
    assert terms.weights == (("resnet18", str(weights)),) and terms.files == (str(weights),)
    unit = Unit(tmp_path, "tiny", tmp_path, terms, "resnet18", 0)
    one = unit.asked
    weights.write_bytes(b"two")
    assert one[:2] == unit.asked[:2] == ["auto", str(weights)] and one[2] != unit.asked[2]
    held = {"files": {str(weights): "a digest"}, "data": {}, "long": None}
    write_json(tmp_path / "out" / "plan.json", held)
    _check_folder(tmp_path / "out", held)
    _check_folder(tmp_path / "out", {"files": {"another": "digest"}, "data": {}})
    with pytest.raises(InputError, match="has changed since .* began with it; give the same file"):
        _check_folder(tmp_path / "out", {"files": {str(weights): "another"}, "data": {}})
    more = _joined(tmp_path / "out", {"files": {"b": "2"}, "data": {}, "long": None})
    assert more["files"] == held["files"] | {"b": "2"}
