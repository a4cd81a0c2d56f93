"""Step 2: train CNN and head on the frozen model's features, checkpoint by validation macro-F1."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dcube.classifier.batches import ClassifierBatches, make_cache
from dcube.classifier.head import map_side
from dcube.classifier.model import DCubeClassifier, Predictor, load_predictor, predictor_dtype
from dcube.classifier.objective import ClassifierObjective, cycle_loss
from dcube.classifier.reader import WholeMaps, joined, make_readers, read, whole_maps
from dcube.classifier.views import apart
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.data.seen import written
from dcube.data.unlabelled import held_out
from dcube.diffusion.train import Diffusion
from dcube.errors import DCubeError
from dcube.features.finetuned import FineTuned, fine_tuned
from dcube.features.frozen import FrozenFeatures, frozen_dtype
from dcube.training.best import BestWeights
from dcube.training.fastest import Trial
from dcube.training.loop import Hook, Task, Trained, train
from dcube.training.order import key, torch_rng
from dcube.training.runtime import precision
from dcube.training.state import load_weights, save_weights
from dcube.training.team import is_helper

CHUNK = 32  # images per forward of a validation
TRIAL_IMAGES = 4  # of the trial of the dtype


class ClassifierLoss:
    """Eq. 10 on a batch: forwards of the image and of its mirror image, cycle term on a part of the batch."""

    def __init__(self, experiment: Experiment, frozen: FrozenFeatures, labels: np.ndarray, num_classes: int) -> None:
        self.config, self.frozen, self.denoiser = experiment.classifier, frozen, frozen.diffusion.model
        weights = None
        if experiment.data.balance == "weights":
            counts = np.bincount(labels, minlength=num_classes)
            weights = torch.tensor(len(labels) / (num_classes * np.maximum(counts, 1)), dtype=torch.float32)
        self.objective = ClassifierObjective(self.config.lambda_cycle, self.config.lambda_consistency, weights)

    def __call__(
        self, model: nn.Module, batch: dict[str, torch.Tensor], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits, mirrored = self._logits(model, batch)
        cycle = None
        if self.config.lambda_cycle:
            part = math.ceil(self.config.cycle_fraction * len(logits))  # the batch is in random order
            t = batch["cycle_t"][:part]
            x0, noise = batch["small"][:part] * 2 - 1, batch["cycle_noise"][:part]
            schedule = self.frozen.diffusion.schedule
            x_t = schedule.add_noise(x0, noise, t)
            with precision(x_t.device, self.frozen.dtype):
                cycle = cycle_loss(self.denoiser, x_t, t, batch["y"][:part], logits[:part], schedule)
        return self.objective(logits, batch["y"], cycle, mirrored)

    def _logits(
        self, model: nn.Module, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [B, K] of the images, and of their mirror images where eq. 8 counts: one forward for both."""
        if not self.config.lambda_consistency:
            return model(batch["large"], self._maps(batch, ("map",))), None
        both = torch.cat([batch["large"], batch["large"].flip(-1)])
        with apart(model, 2):
            logits, mirrored = model(both, self._maps(batch, ("map", "mirror"))).chunk(2)
        return logits, mirrored

    def _maps(self, batch: dict[str, torch.Tensor], views: tuple[str, ...]) -> list[torch.Tensor]:
        """Features of the views side by side, from the batch or from the frozen model."""
        if "map0" in batch:
            with precision(batch["map0"].device, torch.float32):  # autocast cannot join float16
                held = [[batch[f"{view}{i}"] for view in views] for i in range(len(self.frozen.blocks))]
                return [torch.cat(pair).float() for pair in held]
        small = torch.cat([batch["small"], batch["small"].flip(-1)][: len(views)])
        maps = self.frozen(small, batch["t"].repeat(len(views)))
        # a copy, since inference tensors cannot be saved for backward
        return [m.clone(memory_format=torch.channels_last) for m in maps]


class Validation:
    """Probabilities for the validation split, its macro-F1, and the best weights so far."""

    def __init__(
        self, data: ImageData, experiment: Experiment, frozen: FrozenFeatures, directory: Path,
        metadata: dict[str, Any], read: Mapping[str, np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        """`read`: probabilities [n, K] by each of the readers, which stay what they are."""
        self.data, self.experiment, self.frozen = data, experiment, frozen
        self.indices = data.indices("val")
        self.read = [torch.from_numpy(alone).log() for alone in (read or {}).values()]
        file = directory / "best.safetensors"
        self.best = BestWeights(file, data.labels[self.indices], len(data.classes), metadata)
        steps = experiment.features.prediction_timesteps
        self.cache = make_cache(data, self.indices, frozen, experiment, steps, directory, mirror=False)

    def __call__(self, step: int, ema: nn.Module, extra: dict[str, Any]) -> dict[str, Any]:
        return self.best(step, ema, extra, self.probabilities(ema))

    @torch.inference_mode()
    def probabilities(self, ema: nn.Module) -> np.ndarray:
        """[n, K] float64 for the validation split."""
        assert isinstance(ema, DCubeClassifier)
        device = next(ema.parameters()).device
        parts = []
        for start in range(0, len(self.indices), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(self.indices)))
            large = self.data.images(self.indices[rows], self.experiment.sub_size).to(device)
            maps = [[m.to(device).float() for m in step] for step in self._maps(rows, device)]
            answer = ema.answer(large, maps).cpu().double()
            parts.append(joined(answer, *(alone[rows] for alone in self.read)).numpy())
        return np.concatenate(parts)

    def _maps(self, rows: np.ndarray, device: torch.device) -> list[list[torch.Tensor]]:
        steps = self.experiment.features.prediction_timesteps
        if self.cache is not None:
            no = np.zeros(len(rows), bool)
            return [self.cache.maps(rows, no, np.full(len(rows), at)) for at in range(len(steps))]
        small = self.data.images(self.indices[rows], self.frozen.diffusion.config.image_size).to(device)
        return [self.frozen(small, torch.full((len(rows),), step, device=device)) for step in steps]


def trials(model: DCubeClassifier, size: int, channels: int, shapes: list[tuple[int, int, int]]) -> dict[str, Trial]:
    """What tells the dtype of the forward passes, and the attention of step 1's own network, where that is f_sub and
    has any.
    """
    found = {"dtype": trial(model, size, channels, shapes)}
    if isinstance(model.subnet, FineTuned):
        images = torch.zeros(TRIAL_IMAGES, channels, size, size)
        own = model.subnet.model.trials(images, torch.zeros(TRIAL_IMAGES).long())
        found |= {name: part for name, part in own.items() if name == "attention"}
    return found


def trial(model: nn.Module, size: int, channels: int, shapes: list[tuple[int, int, int]]) -> Trial:
    """The whole classifier on a few images of noise: what tells the dtype of its forward passes."""
    noise = torch_rng(0, "classifier", "trial")
    inputs = [torch.rand(TRIAL_IMAGES, *shape, generator=noise) for shape in ((channels, size, size), *shapes)]
    return model, (inputs[0], inputs[1:])


def _begun(
    data: ImageData, experiment: Experiment, frozen: FrozenFeatures, whole: WholeMaps | None, directory: Path
) -> DCubeClassifier:
    """The classifier as its training begins, its readers fitted."""
    readers = None  # a helper takes them from the first checkpoint
    if not is_helper():
        readers, _ = make_readers(data, experiment, directory, frozen.diffusion, frozen.dtype)
    torch.manual_seed(key(experiment.seed, "classifier", "weights"))
    channels = [shape[0] for shape in frozen.shapes]
    own = fine_tuned(frozen.diffusion, experiment.classifier, experiment.features)
    model = DCubeClassifier(
        experiment.classifier, len(data.classes), channels, whole=whole.channels if whole else (), own=own
    )
    if readers is not None:
        model.readers.load_state_dict(readers.state_dict())
    return model


def train_classifier(
    data: ImageData, experiment: Experiment, diffusion: Diffusion, blocks: list[int], directory: Path,
    deadline: float | None = None, look: dict[str, Any] | None = None, cached: bool | None = None,
) -> tuple[Predictor, Trained]:  # fmt: skip
    """Train (or continue) step 2 in `directory`, which then holds log.jsonl and model.safetensors: the EMA
    weights with the best validation macro-F1, or the last ones where nothing was validated before the end. `look` (what
    training images look like) travels in their metadata. `cached`: whether features come from a cache, None: where
    that pays.
    """
    config = experiment.classifier
    frozen, predicting = (
        FrozenFeatures(diffusion, blocks, experiment.features.input, map_side(config), dtype)
        for dtype in (
            frozen_dtype(experiment.features.dtype, diffusion.device, directory),
            predictor_dtype(experiment.features, diffusion.device),
        )
    )
    whole = whole_maps(diffusion, config, experiment.features, predicting.dtype)
    model = _begun(data, experiment, predicting, whole, directory)
    metadata = {
        "classifier": config.model_dump(mode="json"), "features": experiment.features.model_dump(mode="json"),
        "blocks": blocks, "classes": data.classes, "cnn_source": model.subnet.source,
        "normalisation": data.store.normalisation.to_dict(), "look": look or {},
    }  # fmt: skip
    if data.store.marks is not None:
        metadata["held_out"] = written(held_out([data]))
    batches = ClassifierBatches(data, experiment, frozen, directory, cached)
    steps_per_epoch = len(batches.indices) / config.optimizer.batch_size
    hooks = []
    if len(data.indices("val")) and not is_helper():
        alone = read(model.readers.to(diffusion.device), data, data.indices("val"), config, whole)
        validation = Validation(data, experiment, predicting, directory, metadata, alone)
        hooks = [Hook(max(1, round(config.validate_every * steps_per_epoch)), validation)]
    task = Task(
        "classifier", model, batches, ClassifierLoss(experiment, frozen, batches.labels, len(data.classes)),
        steps_per_epoch, hooks=hooks,
        learning_rates=lambda m: [
            {"params": list(m.head.parameters())},  # type: ignore[union-attr]
            {"params": list(m.subnet.parameters()), "scale": config.cnn_lr_scale},  # type: ignore[union-attr]
        ],
        memory_settings="classifier.optimizer.batch_size" + " or classifier.cnn_size" * (config.sub_network == "cnn"),
        trials=lambda: trials(model, experiment.sub_size, data.store.normalisation.channels, frozen.shapes),
        unused=True,  # layers that some CNNs of timm have behind their maps
    )  # fmt: skip
    steps = config.optimizer.total_steps(len(batches.indices))
    result = train(task, config.optimizer, steps, experiment.seed, directory, experiment.runtime, deadline)
    best, final = directory / "best.safetensors", directory / "model.safetensors"
    ended_before = bool(hooks) and result.finished and final.exists() and not best.exists()  # and cleared up
    if not ended_before:
        if result.extra.get("best"):
            if not best.is_file():
                raise DCubeError(f"The best weights are gone from {directory}; remove it and repeat the command.")
            tensors, metadata = load_weights(best)
            result.model.load_state_dict(tensors)
        save_weights(final, result.model, metadata)
    for left_over in (best, *directory.glob("features-*.f16")):
        if result.finished:
            left_over.unlink(missing_ok=True)
    return load_predictor(final, diffusion, diffusion.device), result
