"""Objective of step 1 (eq. 3-5)."""

import torch
import torch.nn.functional as F
from torch import nn

from dcube.config import ContrastiveConfig
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.schedule import Schedule
from dcube.training.runtime import full_precision


def noise_loss(predicted: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Eq. 3, read as the text says it: mean squared error of the noise over all values. Both [B, C, H, W]."""
    return F.mse_loss(full_precision(predicted), full_precision(noise))


def pair_distance(f1: torch.Tensor, f2: torch.Tensor, distance: str) -> torch.Tensor:
    """d of eq. 4 for each pair, [B]; the gradient is 0, not NaN, where d = 0.

    f1, f2: [B, ...] features. `paper`: L2 over all values. `pooled`: f are maps [B, C, h, w]; L2 between
    their means over the positions, brought to unit length, so that a margin means something at any width.
    """
    f1, f2 = full_precision(f1), full_precision(f2)
    if distance == "pooled":
        f1, f2 = (F.normalize(f.flatten(2).mean(2), dim=1) for f in (f1, f2))
    return torch.linalg.vector_norm((f1 - f2).flatten(1), dim=1)


def contrastive_loss(
    distances: torch.Tensor, same: torch.Tensor, margin: float, reduction: str = "mean"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 4: d for pairs of one class, max(margin - d, 0) for the others.

    distances: [B]; same: [B] bool. Returns (scalar, share of the other-class pairs whose hinge is active).
    `reduction`: "mean" over the batch, or "sum" as the paper writes it.
    """
    hinge = (margin - distances).clamp(min=0)
    terms = torch.where(same, distances, hinge)
    other = ~same
    active = ((hinge > 0) & other).sum() / other.sum().clamp(min=1)
    return terms.sum() if reduction == "sum" else terms.mean(), active


class GenerativeObjective:
    """Eq. 5: L_Gen = L_Cont + L_Diff(x_t^1) + L_Diff(x_t^2); one forward for both images of a pair."""

    def __init__(self, schedule: Schedule, config: ContrastiveConfig, middle: str) -> None:
        self.schedule, self.config, self.middle = schedule, config, middle

    def __call__(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, same: torch.Tensor,
        t: torch.Tensor, noise: torch.Tensor, dropped: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
        """x: [B, 2, C, H, W] in [-1, 1]; y, dropped (label replaced by null): [B, 2]; same, t: [B];
        noise: [B, C, H, W], shared by the pair like t. Returns the loss and its parts.
        """
        core = model if isinstance(model, Denoiser) else model.module  # wrapped for many processes
        assert isinstance(core, Denoiser)
        taps = (self.middle,) if self.config.weight and self.config.label == "true" else ()
        t2, noise2 = t.repeat(2), noise.repeat(2, 1, 1, 1)
        x_t = self.schedule.add_noise(x.transpose(0, 1).flatten(0, 1), noise2, t2)
        labels = torch.where(dropped, core.null_label, y).T.flatten()
        predicted, features = model(x_t, t2, labels, taps)
        first, second = (noise_loss(p, noise) for p in predicted.chunk(2))
        parts = {"diffusion": (first + second).detach()}
        loss = first + second
        if self.config.weight:
            if not taps:  # features that cannot know the label
                _, features = model(x_t, t2, None, (self.middle,), True)
            feature = features[self.middle]
            if self.config.distance == "pooled":
                feature = core.as_map(feature)
            f1, f2 = feature.chunk(2)
            distances = pair_distance(f1, f2, self.config.distance)
            reduction = "sum" if self.config.distance == "paper" else "mean"
            contrastive, active = contrastive_loss(distances, same, self.config.margin, reduction)
            loss = loss + self.config.weight * contrastive
            parts |= {"contrastive": contrastive.detach(), "active_share": active}
            parts["distance"] = distances.detach().mean()
        return loss, parts
