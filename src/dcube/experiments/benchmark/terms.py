"""What holds for every cell of a benchmark, and what a cell is."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.data.folds import splits_of
from dcube.data.scarcity import scarce
from dcube.data.store import Store
from dcube.experiments.benchmark.field import STEP1, Configuration, configurations, parts_of
from dcube.files import file_digest, read_json
from dcube.settings import override
from dcube.training.budget import Budget


@dataclass(frozen=True)
class Terms:
    """The same for all systems. `settings.seed` is that of the split; a cell's own is its training's."""

    settings: Experiment
    recipes: Literal["equal", "paper"] = "equal"
    budget: Budget | None = None  # of a cell; None (recipes paper alone): the epochs of table IX
    long: Budget | None = None  # of step 1 of dcube_long
    step1_share: float = 0.5  # of D-Cube's budget
    tries: int = 2  # configurations of a system that are tried
    share: float | None = None
    rarest: float | None = None
    weights: tuple[tuple[str, str], ...] = ()  # (system, or "" for all; word or file)

    def described(self) -> dict[str, Any]:
        """As JSON: all that a repeated command must not change. Speed may."""
        return {
            "settings": self.settings.model_dump(mode="json", exclude={"runtime"}), "recipes": self.recipes,
            "budget": None if self.budget is None else str(self.budget),
            "long": None if self.long is None else str(self.long),
            "step1_share": self.step1_share, "tries": self.tries, "share": self.share, "rarest": self.rarest,
        }  # fmt: skip

    @property
    def files(self) -> tuple[str, ...]:
        """First weights of D-Cube and of what reads its CNN, where they are files; a rival's are its unit's own."""
        own = (self.settings.classifier.cnn_weights, self.settings.diffusion.init or "")
        return tuple(path for path in own if path and Path(path).is_file())

    def configurations(self, model: str) -> tuple[Configuration, ...]:
        """What is tried of a system."""
        return configurations(model, self.settings, self.recipes, self.tries)


@dataclass(frozen=True)
class Unit:
    """A cell: one training of one system on one data set, told so plainly that another process can work on it."""

    out: Path
    name: str  # of the data set
    store: Path
    terms: Terms
    model: str
    seed: int
    configuration: int = 0

    @property
    def root(self) -> Path:
        """Of the data set."""
        return self.out / self.name

    @property
    def directory(self) -> Path:
        """Where the results of the cell lie."""
        place = self.root / f"seed-{self.seed}" / self.model
        return place if self.model in STEP1.values() else place / f"configuration-{self.configuration}"

    @property
    def prepared(self) -> Path:
        """What was measured of the system before any training, for all of its cells; beside it a folder."""
        return self.root / "prepared" / f"{self.model}.json"

    @property
    def result(self) -> Path:
        """The file that shows that the cell is finished."""
        return self.directory / "cell.json"

    def predictions(self, split: str) -> Path:
        """Probabilities of a split."""
        return self.directory / f"predictions-{split}.json"

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to be trained, nor to be cleared away."""
        return self.result.is_file() and not any(self.directory.rglob("checkpoint"))

    @property
    def is_opened(self) -> bool:
        """Whether its predictions for the test split are there, and its weights gone; a failed cell has none."""
        told = self.predictions("test").is_file() or "failed" in read_json(self.result)
        return told and not any(self.directory.rglob("*.safetensors"))

    @property
    def step1(self) -> "Unit":
        """The cell of the step 1 that this system uses."""
        return Unit(self.out, self.name, self.store, self.terms, STEP1[self.model], self.seed)

    @property
    def parts(self) -> tuple["Unit", ...]:
        """The cells, as they were chosen, of the systems that this one joins."""
        chosen = {name: read_json(self.root / "chosen" / f"{name}.json") for name in parts_of(self.model)}
        return tuple(replace(self, model=name, configuration=c["configuration"]) for name, c in chosen.items())

    @cached_property
    def chosen(self) -> Configuration:
        """The configuration that the cell trains."""
        return self.terms.configurations(self.model)[self.configuration]

    @cached_property
    def settings(self) -> Experiment:
        """Of this cell: its seed, its configuration."""
        seeded = self.terms.settings.model_copy(update={"seed": self.seed})
        return seeded if self.model in STEP1.values() else override(seeded, self.chosen.changes)

    @property
    def weights(self) -> tuple[str, str | None]:
        """Word and file of the first weights, as `baselines.create` takes them."""
        asked = dict(self.terms.weights)
        given = asked.get(self.model, asked.get("", "auto"))
        return (given, None) if given in ("auto", "hub", "none", "offline") else ("auto", given)

    @property
    def asked(self) -> list[str | None]:
        """The same as JSON, and of a file its digest: it may change under its name."""
        word, file = self.weights
        return [word, file, *([file_digest(Path(file))] if file and Path(file).is_file() else [])]

    def data(self) -> ImageData:
        """The images with their splits: every system of a seed has the same."""
        store, terms = Store.open(self.store), self.terms
        splits = splits_of(store, terms.settings.data, terms.settings.seed)
        return ImageData(store, scarce(store, splits, self.seed, terms.share, terms.rarest))

    def read(self, split: str) -> np.ndarray:
        """Probabilities [n, K] for the rows of a split."""
        return np.array(read_json(self.predictions(split)))

    def __str__(self) -> str:
        return str(self.directory.relative_to(self.out))
