"""What every trainable system of the field is: an image classifier with its own loss, stages and probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from dcube.training.runtime import full_precision

Parts: TypeAlias = dict[str, torch.Tensor]
Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Generator], tuple[torch.Tensor, Parts]]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of the usual ImageNet weights


@dataclass(frozen=True)
class Stage:
    """A part of a training: its loss, and the share of the system's whole budget that it gets."""

    name: str
    share: float  # 0 .. 1; the shares of a system sum to 1
    loss: Loss
    groups: Callable[[], list[dict[str, Any]]] | None = None  # parameters that it trains; None: the system's


class System(nn.Module):
    """A classifier: images [B, C, S, S] in [0, 1], C = 1 or 3 -> logits [B, K]."""

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, rng: torch.Generator
    ) -> tuple[torch.Tensor, Parts]:
        """The scalar to minimise and its parts, detached. labels: [B] int64; rng: a CPU generator of the step."""
        loss = F.cross_entropy(full_precision(self(images)), labels)
        return loss, {"cross_entropy": loss.detach()}

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor, seed: int) -> torch.Tensor:
        """Class probabilities [B, K] in evaluation mode; an image's do not depend on its neighbours."""
        return full_precision(self(images)).softmax(-1)

    def stages(self) -> tuple[Stage, ...]:
        """The parts of a training in their order; one for most systems."""
        return (Stage("train", 1.0, self.loss),)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters with the `scale` of their learning rate, as `dcube.training.loop` reads them."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]


class Normalise(nn.Module):
    """Grey images repeated to 3 channels, then as the weights expect: (x - mean) / std."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return (images - self.mean) / self.std


class Network(System):
    """Any network of 3-channel images that returns logits, behind its normalisation."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise, self.network = Normalise(mean, std), network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result = self.network(self.normalise(images))
        logits: torch.Tensor = getattr(result, "logits", result)  # transformers wraps them
        return logits
