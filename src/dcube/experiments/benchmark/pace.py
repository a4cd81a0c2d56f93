"""How long the steps of D-Cube's trainings take on this machine, by the loop's own clock."""

import shutil
from pathlib import Path

from dcube.classifier.train import train_classifier
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.data.scarcity import LEFT_OUT
from dcube.diffusion.train import Diffusion, train_diffusion
from dcube.features.teacher import CnnTeacher
from dcube.settings import override
from dcube.training.budget import Pace
from dcube.training.log import read_log
from dcube.training.loop import LOG_EVERY
from dcube.training.order import numpy_rng

IMAGES = 64  # of the training and of the validation part that step 2 is timed on: a step does not depend on them
NO_CHECKPOINTS = "runtime.checkpoint_seconds=1000000000"  # they would come between the rows of the log
SHORTEST = 1e-3  # seconds; the log's resolution


def step1_pace(data: ImageData, settings: Experiment, directory: Path) -> float:
    """Seconds of a step of step 1: its steps LOG_EVERY + 1 .. 2 LOG_EVERY, at every size that `diffusion.growth` goes
    through, weighted as it says. Leaves DIRECTORY/runtime.json.
    """
    growth = (*settings.diffusion.growth, (1.0, settings.diffusion.image_size))
    teacher = CnnTeacher(data, settings) if settings.diffusion.align.weight else None
    total, before = 0.0, 0.0
    for share, size in growth:
        shutil.rmtree(directory, ignore_errors=True)
        short = override(settings, [
            "diffusion.growth=[]", f"diffusion.image_size={size}", "diffusion.sampler=ddim", "diffusion.sample_steps=1",
            f"diffusion.optimizer.steps={2 * LOG_EVERY}", NO_CHECKPOINTS,
        ])  # fmt: skip
        train_diffusion(data, short, directory, teacher=teacher)
        clock = _clock(directory)
        total += (share - before) * max(SHORTEST, (clock[2 * LOG_EVERY] - clock[LOG_EVERY]) / LOG_EVERY)
        before = share
    (directory / "model.safetensors").unlink()
    return total


def step2_pace(
    data: ImageData, settings: Experiment, diffusion: Diffusion, blocks: list[int], directory: Path
) -> Pace:
    """Seconds of a step of step 2 and of a validation, on a few images. Leaves DIRECTORY/runtime.json."""
    shutil.rmtree(directory, ignore_errors=True)
    few = _few(data, settings.seed)
    batch_size = settings.classifier.optimizer.batch_size
    epochs = 2 * LOG_EVERY * batch_size / len(few.indices("train"))  # one validation, after two rows of the log
    short = override(settings, [
        f"classifier.optimizer.steps={3 * LOG_EVERY}", f"classifier.validate_every={epochs!r}", NO_CHECKPOINTS,
    ])  # fmt: skip
    train_classifier(few, short, diffusion, blocks, directory)
    clock = _clock(directory)
    first, second, third = (clock[LOG_EVERY * i] for i in (1, 2, 3))
    step = max(SHORTEST, (second - first) / LOG_EVERY)
    look = max(0.0, third - second - LOG_EVERY * step)
    return Pace(step, look * len(data.indices("val")) / len(few.indices("val")))


def _clock(directory: Path) -> dict[int, float]:
    """Seconds of training at the steps of the log."""
    return {row["step"]: row["seconds"] for row in read_log(directory / "log.jsonl") if "seconds" in row}


def _few(data: ImageData, seed: int) -> ImageData:
    """The data with no more than IMAGES in train and in val."""
    splits = data.splits.copy()
    for split in ("train", "val"):
        splits[numpy_rng(seed, "pace", split).permutation(data.indices(split))[IMAGES:]] = LEFT_OUT
    return ImageData(data.store, splits)
