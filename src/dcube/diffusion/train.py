"""Step 1: train the denoiser on pairs of images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import nn

from dcube.config import ContrastiveConfig, DiffusionConfig, Experiment
from dcube.data.dataset import ImageData
from dcube.data.pairs import PairSampler
from dcube.data.seen import Seen
from dcube.diffusion.augment import apply_parameters, draw_parameters
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.build import add_side_heads, build_denoiser, initial_denoiser
from dcube.diffusion.objective import GenerativeObjective, loss_weights
from dcube.diffusion.sampling import ddim_sample, ddpm_sample
from dcube.diffusion.schedule import Schedule
from dcube.diffusion.solver import dpm_sample
from dcube.diffusion.warmstart import warm_start
from dcube.files import atomic_write
from dcube.training.clock import Watch
from dcube.training.loop import Hook, Task, Trained, train
from dcube.training.memory import keep_memory
from dcube.training.order import Order, numpy_rng, torch_rng
from dcube.training.runtime import named_dtype, precision
from dcube.training.state import checkpoints, load_weights, save_weights

SAMPLE_CHUNK = 32  # images per forward of a sampler
TRIAL_IMAGES = 4  # of the trial of dtype and attention: enough for matrix products at their rate


@dataclass(frozen=True)
class Diffusion:
    """A trained step 1: the frozen denoiser, its schedule and its configuration."""

    model: Denoiser
    schedule: Schedule
    config: DiffusionConfig
    channels: int
    classes: list[str]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.labels.weight.device

    def sample(self, labels: torch.Tensor, seed: int, steps: int | None = None, first: int = 0) -> torch.Tensor:
        """Images [B, C, H, W] in [0, 1] for labels [B] int64, the numbers `first`, `first` + 1, ...; image i depends on
        (seed, i) and its label alone, and memory does not grow with B but for the result.
        """
        shape = self.channels, self.config.image_size, self.config.image_size
        made = [torch.zeros(0, *shape)]
        for done in range(0, len(labels), SAMPLE_CHUNK):
            y = labels[done : done + SAMPLE_CHUNK].to(self.device)
            numbers = range(first + done, first + done + len(y))
            start = torch.stack([torch.randn(shape, generator=torch_rng(seed, "sample", i)) for i in numbers])
            fresh = [torch_rng(seed, "sample noise", i) for i in numbers]
            images = self._draw(y, start.to(self.device), steps or self.config.sample_steps, fresh)
            made.append((images.float().cpu() + 1) / 2)
        return torch.cat(made)

    def _draw(self, y: torch.Tensor, start: torch.Tensor, steps: int, fresh: list[torch.Generator]) -> torch.Tensor:
        """Images in [-1, 1] by the sampler of the configuration."""
        given, scale = (self.model, self.schedule, y, start), self.config.guidance_scale
        with precision(self.device, named_dtype(self.config.sample_dtype, self.device)):
            if self.config.sampler == "ddpm":
                return ddpm_sample(*given, fresh, scale)
            if self.config.sampler == "ddim":
                return ddim_sample(*given, steps, scale)
            return dpm_sample(*given, steps, scale, generator=fresh if self.config.sampler == "sde" else None)


Probe: TypeAlias = Callable[[Diffusion, dict[str, Any]], dict[str, Any]]  # gets `extra`, kept with the checkpoint


class Teacher(Protocol):
    """A frozen network's features of training images, for `align`."""

    width: int

    def __call__(self, positions: np.ndarray, flipped: np.ndarray) -> torch.Tensor:
        """[n, width, s, s] of the training images at `positions` [n], mirrored where `flipped` [n]."""
        ...


class PairBatches:
    """The batch of a step: images, labels and the random numbers that belong to it, on the CPU.

    `mirror`: whether `diffusion.augmentation` may mirror images. `unconditional`: every label is 0, and the partner of
    an image is any image.
    """

    def __init__(
        self, data: ImageData, config: DiffusionConfig, seed: int, teacher: Teacher | None = None,
        mirror: bool = True, unconditional: bool = False,
    ) -> None:  # fmt: skip
        self.data, self.config, self.seed, self.teacher = data, config, seed, teacher
        self.mirror = mirror and not config.augment
        self.indices = data.indices("train")
        self.labels = np.zeros(len(self.indices), np.int64) if unconditional else data.labels[self.indices]
        self.order = Order(self.labels, config.optimizer.batch_size, seed)
        self.pairs = None if unconditional else PairSampler(self.labels)
        self.steps = config.optimizer.total_steps(len(self.indices))

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """x: [B, 2, C, S, S] in [-1, 1]; y, dropped: [B, 2]; same, t: [B]; noise: [B, C, S, S]; with a teacher its
        features [B, 2, D, s, s], with augmentation its parameters [B, 2, A]. S grows as `diffusion.growth` says.
        """
        rng = numpy_rng(self.seed, "pairs", step)
        first = self.order.batch(step)
        if self.pairs is None:
            second, same = rng.integers(0, len(self.indices), len(first)), np.ones(len(first), bool)
        else:
            second, same = self.pairs.partners(first, rng)
        both = np.stack([first, second], axis=1).reshape(-1)  # pair by pair
        x = self.data.images(self.indices[both], self.config.size_at(step, self.steps)).mul_(2).sub_(1)
        flipped = rng.random(len(both)) < (0.5 if self.config.augment else 0)
        if flipped.any():
            mirrored = torch.from_numpy(flipped.nonzero()[0])
            x[mirrored] = x[mirrored].flip(-1)
        more = {} if self.teacher is None else {"teacher": self.teacher(both, flipped).unflatten(0, (-1, 2))}
        if self.config.augmentation.probability:
            drawn = torch_rng(self.seed, "augmentation", step)
            parameters = draw_parameters(len(x), self.config.augmentation, self.mirror, drawn)
            x, more["augmentation"] = apply_parameters(x, parameters), parameters.unflatten(0, (-1, 2))
        generator = torch_rng(self.seed, "noise", step)
        return more | {
            "x": x.unflatten(0, (-1, 2)),
            "y": torch.from_numpy(self.labels[both]).view(-1, 2),
            "same": torch.from_numpy(same),
            "t": self._timesteps(len(first), generator),
            "noise": torch.randn(x[: len(first)].shape, generator=generator),
            "dropped": torch.rand(len(first), 2, generator=generator) < self.config.label_dropout,
        }

    def _timesteps(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """t of `count` pairs, [count] int64 in 0 .. T-1, from the distribution of the configuration."""
        config = self.config
        if config.t_distribution == "uniform":
            return torch.randint(config.timesteps, (count,), generator=generator)
        share = torch.sigmoid(config.t_mean + config.t_deviation * torch.randn(count, generator=generator))
        return (share * config.timesteps).long().clamp(max=config.timesteps - 1)


def train_diffusion(
    data: ImageData, experiment: Experiment, directory: Path, deadline: float | None = None,
    teacher: Teacher | None = None, unconditional: bool = False, probe: Probe | None = None,
    seen: Seen | None = None,
) -> tuple[Diffusion, Trained]:  # fmt: skip
    """Train (or continue) step 1 in `directory`, which then holds log.jsonl, samples/ and model.safetensors.

    `teacher`: what the weight of `diffusion.align` needs. `unconditional`: without labels and without eq. 4, to warm
    up other trainings; the model then has no classes, and label 0 is the null label. `probe`: what looks at the EMA
    weights every `diffusion.probe_minutes` and returns a row of the log. `seen`: what is written down as seen by the
    weights, None: the training images.
    """
    config, seed = experiment.diffusion, experiment.seed
    classes = [] if unconditional else data.classes
    if unconditional:
        config = config.model_copy(update={"contrastive": ContrastiveConfig(weight=0)})
    channels = data.channels
    model = initial_denoiser(config, channels, len(classes), seed)
    if config.init and not checkpoints(directory / "checkpoint"):
        print(warm_start(model, classes, Path(config.init)))
    add_side_heads(model, config, teacher.width if teacher else None, seed)
    schedule = Schedule.of(config)
    objective = GenerativeObjective(
        schedule, config.contrastive, model.middle, config.align, loss_weights(schedule, config)
    )
    batches = PairBatches(data, config, seed, teacher, experiment.data.horizontal_flip, unconditional)
    steps_per_epoch = len(batches.indices) / config.optimizer.batch_size

    def loss(wrapped: nn.Module, batch: Any, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        schedule.to(batch["t"].device)
        return objective(wrapped, **batch)

    def current(ema: nn.Module) -> Diffusion:
        assert isinstance(ema, Denoiser)
        return Diffusion(ema, schedule.to(ema.labels.weight.device), config, channels, classes)

    def draw(step: int, ema: nn.Module, extra: dict[str, Any]) -> dict[str, Any]:
        file = directory / "samples" / f"step-{step:08d}.png"
        write_grid(file, current(ema), seed)
        return {"event": "samples", "file": f"samples/{file.name}"}

    task = Task(
        "diffusion", model, batches, loss, steps_per_epoch,
        hooks=[Hook(max(1, round(config.sample_every * steps_per_epoch)), draw)],
        watch=Watch(config.probe_minutes, lambda _, ema, extra: probe(current(ema), extra)) if probe else None,
        memory_settings="diffusion.optimizer.batch_size or diffusion.image_size",
        optimizer_settings="diffusion.optimizer",
        trials=lambda: model.trials(
            torch.zeros(TRIAL_IMAGES, channels, config.image_size, config.image_size), torch.zeros(TRIAL_IMAGES).long()
        ),
    )  # fmt: skip
    steps = config.optimizer.total_steps(len(batches.indices))
    result = train(task, config.optimizer, steps, seed, directory, experiment.runtime, deadline)
    metadata = {
        "diffusion": config.model_dump(mode="json"), "channels": channels, "classes": classes,
        "normalisation": data.normalisation, "seed": seed, "step": result.step, "seen": seen or data.seen,
    }  # fmt: skip
    result.model.side = nn.ModuleDict()  # nothing but training needs them
    save_weights(directory / "model.safetensors", result.model, metadata)
    return load_diffusion(directory / "model.safetensors"), result


def load_diffusion(path: Path, device: torch.device | str = "cpu") -> Diffusion:
    """The frozen denoiser (EMA weights) of a run, ready for features and sampling."""
    tensors, metadata = load_weights(path)
    config = DiffusionConfig.model_validate(metadata["diffusion"])
    model = build_denoiser(config, metadata["channels"], len(metadata["classes"]))
    model.load_state_dict(tensors)
    return frozen_diffusion(model, config, metadata["channels"], metadata["classes"], device)


def untrained(
    config: DiffusionConfig, channels: int, classes: list[str], seed: int, device: torch.device | str = "cpu"
) -> Diffusion:
    """Step 1 as its training with this seed begins, without `diffusion.init`: what a trained one is compared with."""
    model = initial_denoiser(config, channels, len(classes), seed)
    return frozen_diffusion(model, config, channels, classes, device)


def frozen_diffusion(
    model: Denoiser, config: DiffusionConfig, channels: int, classes: list[str], device: torch.device | str
) -> Diffusion:
    """A denoiser whose weights stay as they are, with its schedule, on a device. On a CPU the process keeps its memory
    from one forward to the next (training/memory.py).
    """
    if torch.device(device).type == "cpu":
        keep_memory()
    model.eval().requires_grad_(False).to(device)
    return Diffusion(model, Schedule.of(config).to(device), config, channels, classes)


def write_grid(path: Path, diffusion: Diffusion, seed: int, columns: int = 8) -> None:
    """A PNG with one row of synthetic images per class, in the order of `classes`."""
    from PIL import Image

    labels = torch.arange(max(1, len(diffusion.classes))).repeat_interleave(columns)  # without classes: no label
    images = diffusion.sample(labels, seed).unflatten(0, (-1, columns))  # [K, columns, C, S, S]
    grid = images.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # [K * S, columns * S, C]
    pixels = (grid * 255).round().byte().numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    atomic_write(path, lambda temporary: picture.save(temporary))
