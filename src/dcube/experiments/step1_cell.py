"""One cell of the study of step 1: a training part, the fold held out from it, and everything trained and asked there.

Block, timestep and regularisation are chosen inside the training part. Each result is a small file: a repeated
command makes what lacks and continues what was interrupted.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcube.classifier.model import load_predictor, predict_rows
from dcube.classifier.reader import CnnCovariances, Reader, Step1Covariances, WholeMaps, reader_features
from dcube.classifier.train import train_classifier
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.data.folds import fold_splits
from dcube.data.scarcity import scarce
from dcube.data.store import Store
from dcube.diffusion.train import Diffusion, load_diffusion, train_diffusion, untrained
from dcube.diffusion.warmstart import labelled_phase
from dcube.errors import InputError
from dcube.evaluation.linear import tuned_probe
from dcube.evaluation.metrics import macro_f1
from dcube.experiments.pool import tidy
from dcube.experiments.probe import PIXELS
from dcube.features.covariance import evened
from dcube.features.frozen import FrozenFeatures, flat_features
from dcube.features.selection import PROBE_RASTER
from dcube.features.subnet import LEVEL, SubNetwork, cnn_features, level_features
from dcube.features.teacher import make_teacher
from dcube.files import digest, read_json, write_json
from dcube.training.order import key
from dcube.training.runtime import pick_device

MIDDLE, TEXTURES = "cnn, stride 16", ", covariances"
WEIGHTS = "model.safetensors"
DIGITS = 4  # of the probabilities that are kept: what is pooled is small enough to be published


@dataclass(frozen=True)
class Cell:
    """One training part and its held-out fold."""

    directory: Path
    data: ImageData
    seed: int
    unlabelled: ImageData | None = None  # what step 1 sees first, without labels
    shared: Path | None = None  # where what it learned so lies, for all draws of the labels
    _held: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def held_out(self) -> np.ndarray:
        """Rows of the fold that nothing is trained on."""
        return self.data.indices("test")

    @property
    def rows(self) -> np.ndarray:
        """Rows of the training part, then those of the held-out fold."""
        return np.concatenate([self.data.indices("train"), self.held_out])

    def cnn(self, settings: Experiment) -> np.ndarray:
        """The pretrained CNN's features [n, d] of `rows`; made once."""
        if "features" not in self._held:
            network, size = _cnn(settings, self.seed), settings.classifier.cnn_size
            self._held["features"] = cnn_features(network, self.data, self.rows, size)
        return self._held["features"]

    def probe(self, features: np.ndarray) -> dict[str, Any]:
        """{"inside": macro-F1 of the folds inside the training part, "probabilities" of the held-out fold [n, K]} by
        features [n, d] of `rows`.
        """
        train, groups = self.data.indices("train"), np.array(self.data.groups)
        probabilities, inside = tuned_probe(
            features[: len(train)], self.data.labels[train], groups[train], features[len(train) :],
            classes=len(self.data.classes), seed=self.seed,
        )  # fmt: skip
        return {"inside": inside, "probabilities": probabilities.round(DIGITS).tolist()}


def textures(cell: Cell, name: str, settings: Experiment, make: Callable[[], tuple[Reader, WholeMaps | None]]) -> None:
    """Probe of what a reader of covariances sees of the cell, left in probe/, as the reader itself would be fitted."""
    file = cell.directory / "probe" / f"{name}{TEXTURES}.json"
    if file.is_file():
        return
    reader, whole = make()
    features = reader_features(reader, cell.data, cell.rows, settings.classifier, whole)
    seen = len(cell.data.indices("train"))
    features *= evened(features[:seen], reader.widths)
    write_json(file, cell.probe(features))


def part_name(part: float) -> str:
    """A part of a training part in words."""
    return {0.5: "half", 0.25: "a quarter", 0.1: "a tenth"}.get(part) or f"{100 * part:.3g} %"


def fold_data(
    store: Store, seed: int, folds: int, fold: int | None, part: float | None = None, draw: int = 0
) -> ImageData:
    """Everything but the given test split, dealt by group: `fold` is "test", the rest "train", or a `part` of it, of
    which there are many draws. None: the given test split is "test", all else "train", or a part of it.

    InputError where a class has too few groups for the folds, or fewer than two in the training part.
    """
    if fold is None:
        splits = np.where(np.array(store.given_splits) == "test", "test", "train").astype("<U5")
    else:
        splits = fold_splits(store, folds, seed)[fold]
    splits = scarce(store, splits, key(seed, "draw", draw) if draw else seed, share=part)
    train, groups = splits == "train", np.array(store.groups)
    for label, name in enumerate(store.classes):
        if len(set(groups[train & (store.labels == label)])) < 2:
            raise InputError(
                f"The class '{name}' has fewer than two groups of images in {f'{part_name(part)} of ' if part else ''}a"
                " training part, but choices are made there between groups; add data, or use fewer folds"
                f"{', a larger --share, or neither --quarter nor --unlabelled' if part else ''}."
            )
    return ImageData(store, splits)


def pretrain(cell: Cell, settings: Experiment) -> Experiment:
    """The settings that go on from a training without labels, which is done once for all draws of them."""
    assert cell.unlabelled is not None and cell.shared is not None
    weights = cell.shared / WEIGHTS
    if not weights.is_file():
        teacher = make_teacher(cell.unlabelled, settings)
        train_diffusion(cell.unlabelled, settings, cell.shared, teacher=teacher, unconditional=True)
        tidy(cell.shared)
    return settings.model_copy(update={"diffusion": labelled_phase(settings.diffusion, str(weights))})


@dataclass(frozen=True)
class Arm:
    """A step 1 of a cell, trained when it is first needed."""

    cell: Cell
    name: str
    settings: Experiment
    trained: bool = True  # False: the network with which the training begins

    @cached_property
    def diffusion(self) -> Diffusion:
        """The frozen step 1."""
        cell, config, device = self.cell, self.settings.diffusion, pick_device(self.settings.runtime.device)
        if not self.trained:
            return untrained(config, cell.data.channels, cell.data.classes, cell.seed, device)
        directory = cell.directory / "step1" / self.name
        finished = directory / "done.json"
        inputs = digest([config.model_dump(mode="json"), cell.seed, cell.data.store.key])
        if not (finished.is_file() and read_json(finished)["inputs"] == inputs):
            # without labels first, where there are images to see so
            pool, settings = cell.unlabelled, self.settings
            if pool is not None:
                settings = pretrain(cell, self.settings)
            teacher, seen = make_teacher(cell.data, settings), pool.seen if pool else None
            train_diffusion(cell.data, settings, directory, teacher=teacher, seen=seen)
            write_json(finished, {"inputs": inputs})
        for left_over in (directory / "checkpoint", directory / "unlabelled"):  # the latter of an older version
            shutil.rmtree(left_over, ignore_errors=True)
        return load_diffusion(directory / WEIGHTS, device)

    def probe(self, timesteps: Sequence[int]) -> dict[str, Any]:
        """Linear probes of every block and timestep: {"blocks": [{"block", "timestep", "inside": macro-F1 inside the
        training part, "macro_f1" of the held-out fold}], "probabilities" of the held-out fold [n, K] by the block that
        is best inside, "with_cnn": the same of that block joined with the CNN's features}.
        """
        file = self.cell.directory / "probe" / f"{self.name}.json"
        if file.is_file():
            found: dict[str, Any] = read_json(file)
            return found
        cell = self.cell
        labels, table = cell.data.labels[cell.held_out], []
        best: tuple[dict[str, Any], np.ndarray] | None = None
        for index in range(len(self.diffusion.model.blocks)):
            for t in timesteps:
                frozen = FrozenFeatures(self.diffusion, [index], self.settings.features.input, PROBE_RASTER)
                [features] = flat_features(frozen, cell.data, cell.rows, [t])
                result = cell.probe(features)
                f1 = macro_f1(labels, np.argmax(result["probabilities"], 1), len(cell.data.classes))
                table.append({"block": index, "timestep": t, "inside": result["inside"], "macro_f1": f1})
                if best is None or result["inside"] > best[0]["inside"]:
                    best = result, features
        assert best is not None
        seen = len(cell.data.indices("train"))
        joined = np.concatenate([balanced(best[1], seen), balanced(cell.cnn(self.settings), seen)], axis=1)
        found = {"blocks": table, "probabilities": best[0]["probabilities"], "with_cnn": cell.probe(joined)}
        write_json(file, found)
        return found

    def textures(self) -> None:
        """The probe of the log-covariances of all blocks; none where only the answers of a trained step 1 are left."""
        if self.trained and not (self.cell.directory / "step1" / self.name / "done.json").is_file():
            return

        def make() -> tuple[Reader, WholeMaps]:
            whole = WholeMaps(self.diffusion, self.settings.features)
            reader = Step1Covariances(whole.channels, len(self.cell.data.classes))
            return reader.to(self.diffusion.device), whole

        textures(self.cell, self.name, self.settings, make)


def reference_probes(cell: Cell, settings: Experiment) -> None:
    """Probes of raw pixels and of the pretrained CNN, its last map's means, a middle map, and the log-covariances of
    all maps, left in probe/.
    """
    size = settings.classifier.cnn_size
    made = {
        "pixels": lambda: cell.data.images(cell.rows, PIXELS).flatten(1).numpy(),
        "cnn": lambda: cell.cnn(settings),
        MIDDLE: lambda: level_features(_cnn(settings, cell.seed), cell.data, cell.rows, size, LEVEL),
    }
    for name, features in made.items():
        file = cell.directory / "probe" / f"{name}.json"
        if not file.is_file():
            write_json(file, cell.probe(features()))
    device, classes = pick_device(settings.runtime.device), len(cell.data.classes)

    def make() -> tuple[Reader, None]:
        _seeded(cell.seed)
        return CnnCovariances(settings.classifier, classes).to(device), None

    textures(cell, "cnn", settings, make)


def _seeded(seed: int) -> None:
    """A CNN without pretrained weights is the same in every probe of a seed."""
    torch.manual_seed(key(seed, "study", "cnn"))


def _cnn(settings: Experiment, seed: int) -> SubNetwork:
    how = settings.classifier
    _seeded(seed)
    return SubNetwork(how.cnn, how.cnn_weights, how.cnn_size).to(pick_device(settings.runtime.device))


def balanced(features: np.ndarray, seen: int) -> np.ndarray:
    """At unit variance in sum over the first `seen` rows: a PCA of several is then not one of the largest alone."""
    return features / np.sqrt(features[:seen].var(0).sum() + 1e-12)


def best_blocks(probed: Mapping[str, Any], count: int) -> list[int]:
    """The `count` blocks whose probes are best inside the training part, in the network's order."""
    order = sorted(probed["blocks"], key=lambda row: -row["inside"])
    chosen: list[int] = []
    for row in order:
        if row["block"] not in chosen:
            chosen.append(row["block"])
    return sorted(chosen[:count])


def classify_system(cell: Cell, name: str, settings: Experiment, arm: Arm, blocks: list[int]) -> None:
    """Probabilities [n, K] of the held-out fold by a trained step 2 on `blocks` of a step 1, left in step2/."""
    directory = cell.directory / "step2" / name
    file, weights = cell.directory / "step2" / f"{name}.json", directory / WEIGHTS
    if not file.is_file():
        train_classifier(cell.data, settings, arm.diffusion, blocks, directory)
        predictor = load_predictor(weights, arm.diffusion, arm.diffusion.device)
        probabilities, _ = predict_rows(predictor, cell.data, cell.held_out)
        write_json(file, {"blocks": blocks, "probabilities": probabilities.round(DIGITS).tolist()})
    tidy(directory)
    weights.unlink(missing_ok=True)  # a study is asked for figures, and has dozens of them
