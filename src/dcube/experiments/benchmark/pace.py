"""How long the steps of D-Cube's trainings take on this machine, by the loop's own clock."""

import shutil
from pathlib import Path

import numpy as np

from dcube.classifier.train import train_classifier
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.data.scarcity import LEFT_OUT
from dcube.diffusion.train import Diffusion, train_diffusion
from dcube.features.teacher import CnnTeacher
from dcube.files import read_json, write_json
from dcube.settings import override
from dcube.training.budget import Pace
from dcube.training.log import read_log
from dcube.training.loop import LOG_EVERY
from dcube.training.order import numpy_rng

IMAGES = 256  # of the validation part that step 2 is timed on: a look has a fixed cost too, which must not be scaled up
STEP1_IMAGES = 128  # that step 1 is timed on
NO_CHECKPOINTS = "runtime.checkpoint_seconds=1000000000"  # they would come between the rows of the log
SHORTEST = 1e-3  # seconds; the log's resolution


def step1_pace(
    data: ImageData, settings: Experiment, directory: Path, held: bool, chosen: Path | None = None
) -> float:
    """Seconds of a step of step 1, on a few images: its steps LOG_EVERY + 1 .. 2 LOG_EVERY, at every size that
    `diffusion.growth` goes through, weighted as it says; with a teacher's maps that are `held`, or made for the step.
    Leaves DIRECTORY/runtime.json; `chosen`, where it is there, is one to begin with.
    """
    growth = (*settings.diffusion.growth, (1.0, settings.diffusion.image_size))
    data = _few(data, settings.seed, STEP1_IMAGES)
    teacher = CnnTeacher(data, settings) if settings.diffusion.align.weight else None
    if teacher and held:
        teacher.hold()
    total, before = 0.0, 0.0
    for share, size in growth:
        shutil.rmtree(directory, ignore_errors=True)
        short = override(settings, [
            "diffusion.growth=[]", f"diffusion.image_size={size}", "diffusion.sampler=ddim", "diffusion.sample_steps=1",
            f"diffusion.optimizer.steps={2 * LOG_EVERY}", NO_CHECKPOINTS,
        ])  # fmt: skip
        if chosen and chosen.is_file():
            write_json(directory / "runtime.json", read_json(chosen))
        train_diffusion(data, short, directory, teacher=teacher)
        clock = _clock(directory)
        total += (share - before) * max(SHORTEST, (clock[2 * LOG_EVERY] - clock[LOG_EVERY]) / LOG_EVERY)
        before = share
    (directory / "model.safetensors").unlink()
    return total


def step2_pace(
    data: ImageData, settings: Experiment, diffusion: Diffusion, blocks: list[int], directory: Path, cached: bool
) -> Pace:
    """Seconds of a step of step 2, with features from a cache or from the frozen model, and of a validation, whose
    features always come from a cache that fits; on a few images. Leaves DIRECTORY/runtime.json.
    """
    step, look = _step_and_look(data, settings, diffusion, blocks, directory, cached=True)
    if not cached:
        step, _ = _step_and_look(data, settings, diffusion, blocks, directory, cached=False)
    return Pace(step, look)


def _step_and_look(
    data: ImageData, settings: Experiment, diffusion: Diffusion, blocks: list[int], directory: Path, cached: bool
) -> tuple[float, float]:
    shutil.rmtree(directory, ignore_errors=True)
    batch_size, steps = settings.classifier.optimizer.batch_size, 3 * LOG_EVERY
    timesteps = settings.features.training_timesteps
    most = steps * batch_size // len(timesteps) if timesteps is not None else IMAGES  # for which a cache pays
    few = _few(data, settings.seed, max(1, most // 2 - 1) if cached else 2 * most)
    epochs = 2 * LOG_EVERY * batch_size / len(few.indices("train"))  # one validation, after two rows of the log
    short = override(settings, [
        f"classifier.optimizer.steps={steps}", f"classifier.validate_every={epochs!r}", NO_CHECKPOINTS,
    ])  # fmt: skip
    short = short if cached else override(short, ["features.cache_gb=0"])
    train_classifier(few, short, diffusion, blocks, directory)
    clock = _clock(directory)
    first, second, third = (clock[LOG_EVERY * i] for i in (1, 2, 3))
    step = max(SHORTEST, (second - first) / LOG_EVERY)
    look = max(0.0, third - second - LOG_EVERY * step)
    return step, look * len(data.indices("val")) / len(few.indices("val"))


def _clock(directory: Path) -> dict[int, float]:
    """Seconds of training at the steps of the log."""
    return {row["step"]: row["seconds"] for row in read_log(directory / "log.jsonl") if "seconds" in row}


def _few(data: ImageData, seed: int, training: int) -> ImageData:
    """The data with no more than so many images in train, and IMAGES in val."""
    splits = data.splits.copy()
    for split, count in (("train", training), ("val", IMAGES)):
        rows = numpy_rng(seed, "pace", split).permutation(data.indices(split))
        _, first = np.unique(data.labels[rows], return_index=True)  # one of every class: pairs need two classes
        rest = np.delete(rows, first)
        splits[rest[max(0, count - len(first)) :]] = LEFT_OUT
    return ImageData(data.store, splits)
