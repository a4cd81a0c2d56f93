"""Step 1: a training step on pairs (eq. 5), eq. 4 in the paper's reading."""

from typing import Any

import torch
from torch import nn

from benchmarks.case import Case, Side
from benchmarks.reference.generative import GenerativeReference
from benchmarks.world import Training, World, difference, to
from dcube.diffusion.objective import GenerativeObjective
from dcube.diffusion.schedule import Schedule
from dcube.diffusion.train import TRIAL_IMAGES, PairBatches
from dcube.training.loop import Batch, Parts, Task

NOTE = "eq. 4 as printed (paper reading); the reference's images are decoded beforehand"


def task(world: World) -> Task:
    """The task that `dcube diffuse` trains."""
    config = world.experiment.diffusion
    model = world.new_denoiser()
    schedule = Schedule.of(config)
    blank = torch.zeros(TRIAL_IMAGES, 1, config.image_size, config.image_size)
    objective = GenerativeObjective(schedule, config.contrastive, model.middle)

    def loss(wrapped: nn.Module, batch: Batch, step: int) -> tuple[torch.Tensor, Parts]:
        schedule.to(batch["t"].device)
        return objective(wrapped, **batch)

    return Task(
        "diffusion", model, PairBatches(world.data, config, world.seed), loss, 1.0,
        trials=lambda: model.trials(blank, torch.zeros(TRIAL_IMAGES).long()),
    )  # fmt: skip


def ours(world: World) -> Side:
    """The program's loop."""
    return [Training(task(world), world.experiment.diffusion.optimizer, world).side()]


def reference(world: World) -> Side:
    """Two forwards per pair in float32."""
    config = world.experiment.diffusion
    batch = to(world.device, PairBatches(world.data, config, world.seed)(0))
    plain = world.plain(trainable=True)
    return [(GenerativeReference(plain, batch, config.optimizer.lr, config.optimizer.ema_decay).step, 1.0)]


def deviation(parts: Any, loss: Any, world: World) -> float:
    """Of the loss of the first step."""
    return difference(parts["loss"], loss)


CASES = [Case("step1", ours, reference, deviation, NOTE)]
