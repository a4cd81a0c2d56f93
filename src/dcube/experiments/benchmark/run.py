"""The order of a benchmark: prepare, try configurations on the first seed, choose by validation, train, and only when
everything is trained and frozen, open the test split.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dcube.data.store import Store
from dcube.errors import InputError
from dcube.experiments.benchmark.cell import drop_weights, open_test, prepare, work
from dcube.experiments.benchmark.field import STEP1, is_system, parts_of
from dcube.experiments.benchmark.terms import Terms, Unit
from dcube.experiments.pool import run_units
from dcube.files import read_json, write_json


class Benchmark:
    """The cells of some systems and seeds on some data sets, in a folder that may hold those of more."""

    def __init__(
        self, stores: dict[str, Store], terms: Terms, out: Path, models: Sequence[str], seeds: Sequence[int], jobs: int
    ) -> None:
        self.stores, self.terms, self.out, self.models = stores, terms, out, tuple(models)
        self.seeds, self.jobs = tuple(seeds), jobs
        self.threads = max(1, terms.settings.runtime.threads)

    def unit(self, name: str, model: str, seed: int, configuration: int = 0) -> Unit:
        """A cell."""
        return Unit(self.out, name, self.stores[name].directory, self.terms, model, seed, configuration)

    def train(self) -> None:
        """Everything but the test split; what is done already is not done again."""
        first = self.seeds[0]
        networks = [model for model in self.models if is_system(model)]
        units = [self.unit(name, model, first) for name in self.stores for model in (*networks, *self._step1())]
        self._work(prepare, [unit for unit in units if not unit.prepared.is_file()])
        alone = [model for model in self.models if not parts_of(model)]
        for models in (alone, [model for model in self.models if parts_of(model)]):  # these wait for their parts
            tried = [
                self.unit(name, model, first, i)
                for name in self.stores for model in models if not self.choice_file(name, model).is_file()
                for i in range(len(self.terms.configurations(model)))
            ]  # fmt: skip
            self._cells(tried)
            for name in self.stores:
                for model in models:
                    self._choose(name, model)
            self._cells(self.cells(models))

    def cells(self, models: Sequence[str] | None = None) -> list[Unit]:
        """The frozen cells: of every system (or of some) its chosen configuration, by data set, system and seed."""
        return [
            self.unit(name, model, seed, read_json(self.choice_file(name, model))["configuration"])
            for name in self.stores for model in (self.models if models is None else models) for seed in self.seeds
        ]  # fmt: skip

    def open_test(self, again: bool) -> int:
        """Predict the test splits by every cell; returns how often that of a data set was opened, at the most.
        InputError as `check_test`.
        """
        record = self._record()
        if new := [unit for unit in self.cells() if str(unit) not in record["cells"]]:
            self.check_test(again)
            counts = {name: self.openings(name) + any(unit.name == name for unit in new) for name in self.stores}
            record = {"evaluations": record["evaluations"] | counts, "cells": [*record["cells"], *map(str, new)]}
            write_json(self.out / "test.json", record)  # before the look: an interrupted one is the same one
        for joins in (False, True):  # these read what their parts said
            cells_of = [unit for unit in self.cells() if bool(parts_of(unit.model)) is joins]
            self._work(open_test, [unit for unit in cells_of if not unit.is_opened])
        return max(self.openings(name) for name in self.stores)

    def openings(self, name: str) -> int:
        """How often the test split of a data set was opened."""
        return int(self._record()["evaluations"].get(name, 0))

    def check_test(self, again: bool) -> None:
        """InputError where the test split of a data set was opened before for others than these cells, unless `again`;
        a data set that is new to the folder has one that nobody has seen.
        """
        known = {tuple(cell.split("/")[:3]) for cell in self._record()["cells"]}  # data set, seed, system
        opened = [name for name in self.stores if self.openings(name)]
        wanted = {(n, f"seed-{s}", m) for n in opened for s in self.seeds for m in self.models}
        if (new := sorted(wanted - known)) and not again:
            name = new[0][0]
            raise InputError(
                f"The test split of {name} was already opened {self.openings(name)} time(s) in {self.out}, and"
                f" {' '.join(new[0])} is new: a choice made after seeing it is no honest one; use another --out, or"
                " --again to open it once more (it is counted)."
            )

    def check_closed(self) -> None:
        """InputError where a test split was opened: tables of the validation split would hide that."""
        for name in self.stores:
            if opened := self.openings(name):
                raise InputError(
                    f"The test split of {name} was already opened {opened} time(s) in {self.out}; leave --no-test out."
                )

    def choice_file(self, name: str, model: str) -> Path:
        """Where the frozen choice of a system's configuration lies."""
        return self.out / name / "chosen" / f"{model}.json"

    def _choose(self, name: str, model: str) -> None:
        """Freeze the configuration with the best validation macro-F1 on the first seed, ties by cross-entropy."""
        file = self.choice_file(name, model)
        units = [self.unit(name, model, self.seeds[0], i) for i in range(len(self.terms.configurations(model)))]
        if not file.is_file():
            tried = [_tried(unit) for unit in units]
            order = sorted(range(len(tried)), key=lambda i: tried[i]["order"])
            for row in tried:
                del row["order"]
            write_json(file, {"configuration": order[0], "seed": self.seeds[0], "tried": tried})
        chosen = read_json(file)["configuration"]
        for unit in units:
            if unit.configuration != chosen:
                drop_weights(unit)

    def _step1(self) -> list[str]:
        """The trainings of step 1 that the systems use."""
        return list(dict.fromkeys(STEP1[model] for model in self.models if model in STEP1))

    def _cells(self, units: Sequence[Unit]) -> None:
        """Train cells: those of step 1 first, since others wait for them, those that use them last."""
        units = [unit for unit in units if not unit.is_finished]
        using = [unit for unit in units if unit.model in STEP1]
        step1 = {str(unit.step1): unit.step1 for unit in using}
        begun = [unit for unit in step1.values() if not unit.is_finished]
        self._work(work, [*begun, *(unit for unit in units if unit.model not in STEP1)])
        self._work(work, using)

    def _work(self, task: Callable[[Unit], None], units: Sequence[Unit]) -> None:
        if units:
            run_units(task, units, self.jobs, self.threads)

    def _record(self) -> dict[str, Any]:
        file = self.out / "test.json"
        found: dict[str, Any] = read_json(file) if file.is_file() else {"evaluations": {}, "cells": []}
        return found


def _tried(unit: Unit) -> dict[str, Any]:
    """What a configuration came to, and its place among the tried ones (`order`: the lowest is the best)."""
    found = read_json(unit.result)
    if "failed" in found:
        return {"text": unit.chosen.text, "failed": found["failed"], "order": (1, 0.0, 0.0)}
    figures = found["validation"]
    order = (0, -figures["macro_f1"], figures["cross_entropy"])
    return {"text": unit.chosen.text, "macro_f1": figures["macro_f1"], "order": order}
