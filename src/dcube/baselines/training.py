"""Training of any system by the loop of D-Cube's own steps: the same batches, validation and choice of weights."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dcube.baselines.base import Stage, System
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.training.best import BestWeights
from dcube.training.budget import Length, Pace, deadline, end, spent
from dcube.training.log import read_log
from dcube.training.loop import LOG_EVERY, Batch, Hook, Parts, Task, train
from dcube.training.order import Order, numpy_rng, torch_rng
from dcube.training.state import load_weights, save_weights

CHUNK = 32  # images per forward of a prediction
TRIAL_IMAGES = 4  # of the trial of the dtype
PACE_SECONDS = 4.0  # that steps are timed for; a first timing of LOG_EVERY steps tells how many they are
PACE_IMAGES = 256  # validation images that are timed: a look has a fixed cost too, which must not be scaled up


class SystemBatches:
    """The batch of a step: the images that step 2 of D-Cube sees there (`ClassifierBatches`), mirrored as there, at
    `diffusion.image_size`.
    """

    def __init__(self, data: ImageData, settings: Experiment) -> None:
        self.data, self.seed = data, settings.seed
        self.size, self.flips = settings.diffusion.image_size, settings.data.horizontal_flip
        self.indices = data.indices("train")
        self.labels = data.labels[self.indices]
        batch_size = settings.classifier.optimizer.batch_size
        self.order = Order(self.labels, batch_size, settings.seed, settings.data.balance == "sampler")

    def __call__(self, step: int) -> Batch:
        """images: [B, C, S, S] in [0, 1]; labels: [B] int64."""
        rows = self.order.batch(step)
        flipped = numpy_rng(self.seed, "step2", step).random(len(rows)) < (0.5 if self.flips else 0)
        images = self.data.images(self.indices[rows], self.size)
        mask = torch.from_numpy(flipped)[:, None, None, None]
        return {"images": torch.where(mask, images.flip(-1), images), "labels": torch.from_numpy(self.labels[rows])}


class StageLoss(nn.Module):
    """A stage's loss as a function of images alone: what tells the dtype of its forward passes."""

    def __init__(self, system: System, stage: Stage, classes: int) -> None:
        super().__init__()
        self.system, self.stage, self.classes = system, stage, classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        labels = torch.arange(len(images), device=images.device) % self.classes
        return self.stage.loss(images, labels, torch_rng(0, "trial"))[0]


@dataclass(frozen=True)
class TrainedSystem:
    """The system with its chosen weights, in evaluation mode; seconds of training; steps done, in the shortest of its
    stages, and planned.
    """

    system: System
    seconds: float
    steps: int
    fewest: int
    planned: int


def stage_task(system: System, stage: Stage, data: ImageData, settings: Experiment, hooks: list[Hook]) -> Task:
    """A stage as the loop takes it. Random numbers of a step belong to the seed, the stage and the step."""
    system.train()
    batches = SystemBatches(data, settings)

    def loss(_: nn.Module, batch: Batch, step: int) -> tuple[torch.Tensor, Parts]:
        return stage.loss(batch["images"], batch["labels"], torch_rng(settings.seed, stage.name, step))

    shape = TRIAL_IMAGES, data.channels, batches.size, batches.size
    noise = torch.rand(shape, generator=torch_rng(0, "classifier", "trial"))
    return Task(
        stage.name, system, batches, loss, len(batches.indices) / settings.classifier.optimizer.batch_size,
        learning_rates=lambda _: (stage.groups or system.parameter_groups)(), hooks=hooks,
        memory_settings="classifier.optimizer.batch_size or the image size",
        trials=lambda: {"dtype": (StageLoss(system, stage, len(data.classes)), (noise,))},
    )  # fmt: skip


def train_system(
    system: System, data: ImageData, settings: Experiment, directory: Path, lengths: Sequence[Length],
    metadata: dict[str, Any],
) -> TrainedSystem:  # fmt: skip
    """Train (or continue) every stage of a system, each for its length, by the optimiser of `settings.classifier`.

    A stage begins with the EMA weights of the one before. Of the last, those with the best validation macro-F1 are
    kept, in DIRECTORY/model.safetensors with `metadata`.
    """
    stages = system.stages()
    rows = data.indices("val")
    best = BestWeights(directory / "best.safetensors", data.labels[rows], len(data.classes), metadata)

    def validate(step: int, ema: nn.Module, extra: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(ema, System)
        return best(step, ema, extra, predict_system(ema, data, rows, settings)[0])

    steps, seconds = [], 0.0
    for stage, length in zip(stages, lengths, strict=True):
        last, part = stage is stages[-1], directory / stage.name
        task = stage_task(system, stage, data, settings, [Hook(length.look_every, validate)] if last else [])
        config, until = length.of(settings.classifier.optimizer), deadline(part, length.seconds)
        result = train(task, config, length.steps, settings.seed, part, settings.runtime, until)
        end(part)
        system.load_state_dict(result.model.state_dict())
        steps.append(result.step)
        seconds += spent(part)
    if result.extra.get("best"):
        system.load_state_dict(load_weights(best.file)[0])
    save_weights(directory / "model.safetensors", system, metadata)
    return TrainedSystem(system.eval(), seconds, sum(steps), min(steps), sum(length.steps for length in lengths))


@torch.no_grad()
def predict_system(
    system: System, data: ImageData, rows: np.ndarray, settings: Experiment
) -> tuple[np.ndarray, float]:
    """Probabilities [n, K] float64 for rows of the store, and the seconds that the system itself took."""
    device = next(system.parameters()).device
    system.eval()
    parts, seconds = [np.zeros((0, len(data.classes)))], 0.0
    for start in range(0, len(rows), CHUNK):
        images = data.images(rows[start : start + CHUNK], settings.diffusion.image_size).to(device)
        begin = time.perf_counter()
        parts.append(system.probabilities(images, settings.seed).cpu().double().numpy())
        seconds += time.perf_counter() - begin
    return np.concatenate(parts), seconds


def system_paces(system: System, data: ImageData, settings: Experiment, directory: Path) -> dict[str, Pace]:
    """Seconds of a step of every stage, by the loop's own clock, and of a validation after it, in the dtype that
    DIRECTORY/STAGE/runtime.json says or, chosen by trial, says then. It trains the system, and leaves checkpoints.
    """
    rows = data.indices("val")
    some = rows[:PACE_IMAGES]
    paces, stages = {}, system.stages()
    for stage in stages:
        part = directory / stage.name
        pace = _timed(stage_task(system, stage, data, settings, []), settings, part)
        look = 0.0
        if stage is stages[-1]:
            begin = time.perf_counter()
            predict_system(system, data, some, settings)
            look = (time.perf_counter() - begin) * len(rows) / max(1, len(some))
        paces[stage.name] = Pace(pace, look)
    return paces


def _timed(task: Task, settings: Experiment, directory: Path) -> float:
    """Seconds of a step on the mean, by LOG_EVERY steps and then, where these are over sooner, by as many as
    PACE_SECONDS hold; the LOG_EVERY before are not counted, and no checkpoint comes between.
    """
    quiet = settings.runtime.model_copy(update={"checkpoint_seconds": 1e9})
    pace, done, steps = 0.0, 0, 2 * LOG_EVERY
    while steps > done:
        config = Length(steps).of(settings.classifier.optimizer)
        train(task, config, steps, settings.seed, directory, quiet)
        clock = {row["step"]: row["seconds"] for row in read_log(directory / "log.jsonl") if "seconds" in row}
        first = done + LOG_EVERY
        pace = max((clock[steps] - clock[first]) / (steps - first), 1e-3)
        more = 0 if done or pace * LOG_EVERY >= PACE_SECONDS else 1 + math.ceil(PACE_SECONDS / pace / LOG_EVERY)
        done, steps = steps, steps + LOG_EVERY * more
    return pace
