"""Step 1: train the denoiser on pairs of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dcube.config import DiffusionConfig, Experiment
from dcube.data.dataset import ImageData
from dcube.data.pairs import PairSampler
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.build import build_denoiser
from dcube.diffusion.objective import GenerativeObjective
from dcube.diffusion.sampling import ddim_sample
from dcube.diffusion.schedule import Schedule
from dcube.files import atomic_write
from dcube.training.loop import Hook, Task, Trained, train
from dcube.training.order import Order, key, numpy_rng, torch_rng
from dcube.training.state import load_weights, save_weights

SAMPLE_CHUNK = 32  # images per forward of a sampler


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

    def sample(self, labels: torch.Tensor, seed: int, steps: int | None = None) -> torch.Tensor:
        """Images [B, C, H, W] in [0, 1] for labels [B] int64; image i depends on (seed, i) alone, and memory does
        not grow with B but for the result.
        """
        shape = self.channels, self.config.image_size, self.config.image_size
        made = [torch.zeros(0, *shape)]
        for first in range(0, len(labels), SAMPLE_CHUNK):
            y = labels[first : first + SAMPLE_CHUNK].to(self.device)
            numbers = range(first, first + len(y))
            start = torch.stack([torch.randn(shape, generator=torch_rng(seed, "sample", i)) for i in numbers])
            images = ddim_sample(
                self.model, self.schedule, y, start.to(self.device),
                steps or self.config.sample_steps, self.config.guidance_scale,
            )  # fmt: skip
            made.append((images.float().cpu() + 1) / 2)
        return torch.cat(made)


class PairBatches:
    """The batch of a step: images, labels and the random numbers that belong to it, on the CPU."""

    def __init__(self, data: ImageData, config: DiffusionConfig, seed: int) -> None:
        self.data, self.config, self.seed = data, config, seed
        self.indices = data.indices("train")
        self.labels = data.labels[self.indices]
        self.order = Order(self.labels, config.optimizer.batch_size, seed)
        self.pairs = PairSampler(self.labels)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """x: [B, 2, C, S, S] in [-1, 1]; y, dropped: [B, 2]; same, t: [B]; noise: [B, C, S, S]."""
        rng = numpy_rng(self.seed, "pairs", step)
        first = self.order.batch(step)
        second, same = self.pairs.partners(first, rng)
        both = np.stack([first, second], axis=1).reshape(-1)  # pair by pair
        x = self.data.images(self.indices[both], self.config.image_size) * 2 - 1
        if self.config.augment:
            flipped = torch.from_numpy(rng.random(len(both)) < 0.5)
            x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
        generator = torch_rng(self.seed, "noise", step)
        return {
            "x": x.unflatten(0, (-1, 2)),
            "y": torch.from_numpy(self.labels[both]).view(-1, 2),
            "same": torch.from_numpy(same),
            "t": torch.randint(self.config.timesteps, (len(first),), generator=generator),
            "noise": torch.randn(x[: len(first)].shape, generator=generator),
            "dropped": torch.rand(len(first), 2, generator=generator) < self.config.label_dropout,
        }


def train_diffusion(
    data: ImageData, experiment: Experiment, directory: Path, deadline: float | None = None
) -> tuple[Diffusion, Trained]:
    """Train (or continue) step 1 in `directory`, which then holds log.jsonl, samples/ and model.safetensors."""
    config, seed = experiment.diffusion, experiment.seed
    channels = data.store.normalisation.channels
    torch.manual_seed(key(seed, "diffusion", "weights"))
    model = build_denoiser(config, channels, len(data.classes))
    schedule = Schedule(config.timesteps, config.beta_start, config.beta_end)
    objective = GenerativeObjective(schedule, config.contrastive, model.middle)
    batches = PairBatches(data, config, seed)
    steps_per_epoch = len(batches.indices) / config.optimizer.batch_size

    def loss(wrapped: nn.Module, batch: Any, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        schedule.to(batch["t"].device)
        return objective(wrapped, **batch)

    def draw(step: int, ema: nn.Module, extra: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(ema, Denoiser)
        made = Diffusion(ema, schedule.to(ema.labels.weight.device), config, channels, data.classes)
        file = directory / "samples" / f"step-{step:08d}.png"
        write_grid(file, made, seed)
        return {"event": "samples", "file": f"samples/{file.name}"}

    task = Task(
        "diffusion", model, batches, loss, steps_per_epoch,
        hooks=[Hook(max(1, round(config.sample_every * steps_per_epoch)), draw)],
        memory_settings="diffusion.optimizer.batch_size or diffusion.image_size",
    )  # fmt: skip
    steps = config.optimizer.total_steps(len(batches.indices))
    result = train(task, config.optimizer, steps, seed, directory, experiment.runtime, deadline)
    metadata = {
        "diffusion": config.model_dump(mode="json"), "channels": channels, "classes": data.classes,
        "normalisation": data.store.normalisation.to_dict(), "seed": seed, "step": result.step,
    }  # fmt: skip
    save_weights(directory / "model.safetensors", result.model, metadata)
    return load_diffusion(directory / "model.safetensors"), result


def load_diffusion(path: Path, device: torch.device | str = "cpu") -> Diffusion:
    """The frozen denoiser (EMA weights) of a run, ready for features and sampling."""
    tensors, metadata = load_weights(path)
    config = DiffusionConfig.model_validate(metadata["diffusion"])
    model = build_denoiser(config, metadata["channels"], len(metadata["classes"]))
    model.load_state_dict(tensors)
    model.eval().requires_grad_(False).to(device)
    schedule = Schedule(config.timesteps, config.beta_start, config.beta_end).to(device)
    return Diffusion(model, schedule, config, metadata["channels"], metadata["classes"])


def write_grid(path: Path, diffusion: Diffusion, seed: int, columns: int = 8) -> None:
    """A PNG with one row of synthetic images per class, in the order of `classes`."""
    from PIL import Image

    labels = torch.arange(len(diffusion.classes)).repeat_interleave(columns)
    images = diffusion.sample(labels, seed).unflatten(0, (-1, columns))  # [K, columns, C, S, S]
    grid = images.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # [K * S, columns * S, C]
    pixels = (grid * 255).round().byte().numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    atomic_write(path, lambda temporary: picture.save(temporary))
