"""The classifier: sub-feature CNN and fusion head over the frozen diffusion features."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dcube.classifier.head import HEADS, map_side
from dcube.classifier.reader import SECOND, WholeMaps, build_readers, joined, read, whole_maps
from dcube.config import ClassifierConfig, FeaturesConfig
from dcube.data.dataset import ImageData
from dcube.diffusion.train import Diffusion
from dcube.features.finetuned import FineTuned, fine_tuned
from dcube.features.frozen import FrozenFeatures
from dcube.features.subnet import SubNetwork
from dcube.progress import progress
from dcube.training.runtime import fast_dtype, full_precision
from dcube.training.state import load_weights

CHUNK = 32  # images per forward
JOINT = 32  # images times timesteps up to which one forward is faster than one per timestep


class DCubeClassifier(nn.Module):
    """Logits from an image and its diffusion features. The frozen diffusion model is not part of it.

    images: [B, C, S, S] in [0, 1] at f_sub's size; maps: one [B, C_b, h_b, w_b] per selected block -> [B, K].
    `blocks`: channels of these; `whole`: of all blocks, where a reader reads them; `own`: f_sub, where it is
    not the CNN.
    """

    def __init__(
        self, config: ClassifierConfig, num_classes: int, blocks: Sequence[int], weights: str | None = None,
        whole: Sequence[int] = (), own: FineTuned | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.subnet = own or SubNetwork(config.cnn, weights or config.cnn_weights, config.cnn_size)
        self.head: nn.Module = HEADS[config.head](
            blocks, self.subnet.width, num_classes, config.grid, config.width, config.dropout
        )
        self.readers = build_readers(config, num_classes, whole, weights)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Runs made when there was one reader have it under `reader`."""
        today = {re.sub(r"^reader\.", f"readers.{SECOND}.", name): tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(today, strict, assign)

    def forward(self, images: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.subnet(images), maps)
        return logits

    def answer(self, images: torch.Tensor, per_timestep: list[list[torch.Tensor]]) -> torch.Tensor:
        """Class probabilities [B, K] by the network alone, averaged over the fixed timesteps (f_sub is run once)."""
        f_sub = self.subnet(images)
        logits = torch.stack([full_precision(self.head(f_sub, maps)) for maps in per_timestep])
        return logits.softmax(-1).mean(0)

    def read(self, images: torch.Tensor, whole: Sequence[torch.Tensor] = ()) -> list[torch.Tensor]:
        """Log-probabilities [B, K] by each reader; images at the CNN's size, `whole`: all of step 1's maps."""
        return [full_precision(reader(images, whole)) for reader in self.readers.values()]


@dataclass(frozen=True)
class Predictor:
    """Everything that turns pixels into probabilities, frozen: diffusion model, selected blocks, classifier."""

    model: DCubeClassifier
    frozen: FrozenFeatures
    config: ClassifierConfig
    features: FeaturesConfig
    classes: list[str]
    metadata: dict[str, Any]
    whole: WholeMaps | None = None  # for a reader of step 1's maps

    @property
    def sizes(self) -> tuple[int, int]:
        """Pixels that the diffusion model and the CNN see; where nothing looks at a CNN, twice the former."""
        small, how = self.frozen.diffusion.config.image_size, self.config
        looks = how.sub_network == "cnn" or how.second_reader or "cnn" in how.covariance_readers
        return small, how.cnn_size if looks else small

    @torch.inference_mode()
    def __call__(self, small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
        """Probabilities [B, K], in fp32 the same for an image alone and in a batch (1e-5; in bf16 to its rounding).

        small, large: [B, C, S, S] in [0, 1], at `sizes`.
        """
        large = large.contiguous(memory_format=torch.channels_last)
        answer = self.model.answer(large if self.config.sub_network == "cnn" else small, self._maps(small))
        return joined(answer, *self.model.read(large, self.whole(small) if self.whole else ()))

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
    small_size, large_size = predictor.sizes
    parts, seconds = [], 0.0
    with progress("prediction", len(rows)) as advance:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            small = data.images(chunk, small_size).to(device)
            large = small if large_size == small_size else data.images(chunk, large_size).to(device)
            begin = time.perf_counter()
            parts.append(predictor(small, large).cpu().double().numpy())
            seconds += time.perf_counter() - begin
            advance(start + len(chunk), "")
    return np.concatenate(parts), seconds


def predict_readers(predictor: Predictor, data: ImageData, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Probabilities [n, K] float64 by each of its readers alone for rows of a store."""
    return read(predictor.model.readers, data, rows, predictor.config, predictor.whole)


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
    whole = whole_maps(diffusion, config, features, dtype)
    model = DCubeClassifier(
        config, len(metadata["classes"]), [s[0] for s in frozen.shapes], "none", whole.channels if whole else (),
        fine_tuned(diffusion, config, features),
    )  # fmt: skip
    model.load_state_dict(tensors)
    model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Predictor(model, frozen, config, features, metadata["classes"], metadata, whole)
