"""The classifier: sub-feature CNN and fusion head over the frozen diffusion features."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dcube.classifier.head import HEADS, map_side
from dcube.classifier.reader import SecondReader, joined
from dcube.config import ClassifierConfig, FeaturesConfig
from dcube.data.dataset import ImageData
from dcube.diffusion.train import Diffusion
from dcube.features.frozen import FrozenFeatures
from dcube.features.subnet import SubNetwork
from dcube.progress import progress
from dcube.training.runtime import fast_dtype, full_precision
from dcube.training.state import load_weights

CHUNK = 32  # images per forward
JOINT = 32  # images times timesteps up to which one forward is faster than one per timestep


class DCubeClassifier(nn.Module):
    """Logits from an image and its diffusion features. The frozen diffusion model is not part of it.

    images: [B, C, S, S] in [0, 1] at `cnn_size`; maps: one [B, C_b, h_b, w_b] per selected block -> [B, K].
    """

    def __init__(
        self, config: ClassifierConfig, num_classes: int, blocks: Sequence[int], weights: str | None = None
    ) -> None:
        super().__init__()
        self.subnet = SubNetwork(config.cnn, weights or config.cnn_weights, config.cnn_size)
        self.head: nn.Module = HEADS[config.head](
            blocks, self.subnet.width, num_classes, config.grid, config.width, config.dropout
        )
        self.reader = SecondReader(config, num_classes, weights) if config.second_reader else None

    def forward(self, images: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.subnet(images), maps)
        return logits

    def probabilities(self, images: torch.Tensor, per_timestep: list[list[torch.Tensor]]) -> torch.Tensor:
        """Class probabilities [B, K], averaged over the fixed timesteps (the CNN is run once), joined with those of the
        second reader where there is one."""
        f_sub = self.subnet(images)
        logits = torch.stack([full_precision(self.head(f_sub, maps)) for maps in per_timestep])
        found = logits.softmax(-1).mean(0)
        return found if self.reader is None else joined(found, full_precision(self.reader(images)))


@dataclass(frozen=True)
class Predictor:
    """Everything that turns pixels into probabilities, frozen: diffusion model, selected blocks, classifier."""

    model: DCubeClassifier
    frozen: FrozenFeatures
    config: ClassifierConfig
    features: FeaturesConfig
    classes: list[str]
    metadata: dict[str, Any]

    @torch.inference_mode()
    def __call__(self, small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
        """Probabilities [B, K], in fp32 the same for an image alone and in a batch (1e-5; in bf16 to its rounding).

        small: [B, C, S, S] at the diffusion model's size, large: at the CNN's; both in [0, 1].
        """
        return self.model.probabilities(large.contiguous(memory_format=torch.channels_last), self._maps(small))

    def _maps(self, small: torch.Tensor) -> list[list[torch.Tensor]]:
        """Per timestep of the fixed set the maps of the blocks; in one forward as far as the batch stays small."""
        maps: list[list[torch.Tensor]] = []
        steps, count = self.features.prediction_timesteps, len(small)
        together = max(1, JOINT // max(1, count))
        for some in (steps[i : i + together] for i in range(0, len(steps), together)):
            t = torch.tensor(some, device=small.device).repeat_interleave(count)
            joint = [m.chunk(len(some)) for m in self.frozen(small.repeat(len(some), 1, 1, 1), t)]
            maps += [[part[i] for part in joint] for i in range(len(some))]
        return maps


def predict_rows(predictor: Predictor, data: ImageData, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Probabilities [n, K] float64 for rows of a store, and the seconds that the model took of it."""
    device = next(predictor.model.parameters()).device
    sizes = predictor.frozen.diffusion.config.image_size, predictor.config.cnn_size
    parts, seconds = [], 0.0
    with progress("prediction", len(rows)) as advance:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            small, large = (data.images(chunk, size).to(device) for size in sizes)
            begin = time.perf_counter()
            parts.append(predictor(small, large).cpu().double().numpy())
            seconds += time.perf_counter() - begin
            advance(start + len(chunk), "")
    return np.concatenate(parts), seconds


def predictor_dtype(features: FeaturesConfig, device: torch.device) -> torch.dtype:
    """dtype that the frozen model predicts in."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return named.get(features.predict_dtype) or fast_dtype(device)


def load_predictor(path: Path, diffusion: Diffusion, device: torch.device | str = "cpu") -> Predictor:
    """The classifier (EMA weights) of a run, beside its diffusion model on the same device."""
    tensors, metadata = load_weights(path)
    config = ClassifierConfig.model_validate(metadata["classifier"])
    features = FeaturesConfig.model_validate(metadata["features"])
    dtype = predictor_dtype(features, diffusion.device)
    frozen = FrozenFeatures(diffusion, metadata["blocks"], features.input, map_side(config), dtype)
    model = DCubeClassifier(config, len(metadata["classes"]), [s[0] for s in frozen.shapes], weights="none")
    model.load_state_dict(tensors)
    model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Predictor(model, frozen, config, features, metadata["classes"], metadata)
