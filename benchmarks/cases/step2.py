"""Step 2: a training step on images and their mirror images (eq. 10), with cached features."""

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Side
from benchmarks.reference.classifier import ClassifierReference
from benchmarks.sizes import EPOCHS, Size
from benchmarks.world import Training, World, difference, to
from dcube.classifier.batches import ClassifierBatches
from dcube.classifier.train import ClassifierLoss, trial
from dcube.config import Experiment
from dcube.features.frozen import FeatureCache
from dcube.training.loop import Task

CYCLES = {"": 0.0, "-cycle-quarter": 0.25, "-cycle-whole": 1.0}  # share of the batch eq. 7 is taken on


def task(world: World, experiment: Experiment) -> Task:
    """The task that `dcube classify` trains; its cache is made at once and kept for the other cases."""
    config, frozen, model = experiment.classifier, world.frozen, world.new_classifier(experiment)
    batches = ClassifierBatches(world.data, experiment, frozen, world.folder)
    return Task(
        "classifier", model, batches, ClassifierLoss(experiment, frozen, batches.labels, world.classes), 1.0,
        learning_rates=lambda m: [
            {"params": list(m.head.parameters())},  # type: ignore[union-attr]
            {"params": list(m.subnet.parameters()), "scale": config.cnn_lr_scale},  # type: ignore[union-attr]
        ],
        trials=lambda: {"dtype": trial(model, config.cnn_size, 1, frozen.shapes)},
    )  # fmt: skip


def ours(experiment: Experiment, world: World) -> Side:
    """A step of the program's loop, and the extraction of one batch's features for all epochs, divided by them."""
    batch = experiment.classifier.optimizer.batch_size
    step = Training(task(world, experiment), experiment.classifier.optimizer, world)
    return [step.side(), (extraction(world, batch), 1 / EPOCHS)]


def extraction(world: World, images: int) -> Callable[[], Any]:
    """Makes the cache of so many images: both mirror images, every timestep of the fixed set, to the disk."""
    rows, timesteps = world.data.indices("train")[:images], world.experiment.features.timesteps
    assert timesteps is not None

    def fill() -> FeatureCache:
        with tempfile.TemporaryDirectory(dir=world.folder) as folder:
            return FeatureCache(world.frozen, world.data, rows, timesteps, True, Path(folder))

    return fill


def reference(experiment: Experiment, world: World) -> Side:
    """Features anew for the image and for its mirror image, full depth; four more full forwards for eq. 7."""
    config = experiment.classifier
    batch = ClassifierBatches(world.data, live(experiment), world.frozen, world.folder)(0)
    model = world.new_classifier(experiment).to(world.device)
    side = ClassifierReference(
        world.plain(), model, to(world.device, batch), world.size.blocks, config.grid,
        (config.lambda_cycle, config.lambda_consistency), config.lambda_cycle > 0,
        config.optimizer.lr, config.optimizer.ema_decay,
    )  # fmt: skip

    def step() -> float:
        """The loss as the program estimates it: eq. 7 of the images alone, on the same part of the batch."""
        loss = side.step()
        if not side.with_cycle:
            return float(loss)
        side_terms = side.cycle[: math.ceil(config.cycle_fraction * len(side.cycle))]
        return float(side.base + config.lambda_cycle * side_terms.mean())

    return [(step, 1.0)]


def live(experiment: Experiment) -> Experiment:
    """The same without a cache."""
    features = experiment.features.model_copy(update={"cache_gb": 0.0})
    return experiment.model_copy(update={"features": features})


def deviation(parts: Any, loss: Any, world: World) -> float:
    """Of the loss of the first step."""
    return difference(parts["loss"], loss)


def cases(size: Size) -> list[Case]:
    """Each CNN and input, without the cycle term, with it on a quarter and on the whole of the batch."""
    made = []
    for network in size.networks:
        for suffix, share in CYCLES.items():
            changes = (f"classifier.cycle_fraction={share}",) if share else ("classifier.lambda_cycle=0",)
            experiment = size.experiment(*changes, network=network)
            name = f"step2-{network[0].removeprefix('tf_')}-{network[1]}{suffix}"
            note = f"extraction of the cached features over {EPOCHS} epochs is in the program's time"
            if share:
                note += "; the program's eq. 7 has a gradient, the reference's none"
            made.append(Case(name, partial(ours, experiment), partial(reference, experiment), deviation, note))
    return made
