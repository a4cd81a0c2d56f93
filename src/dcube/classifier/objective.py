"""Objective of step 2 (eq. 7-10)."""

import torch
import torch.nn.functional as F

from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.schedule import Schedule
from dcube.training.runtime import full_precision


def cycle_loss(
    denoiser: Denoiser, x_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor, logits: torch.Tensor,
    schedule: Schedule | None = None,
) -> torch.Tensor:  # fmt: skip
    """Eq. 7: || eps_theta(x_t, y~) - eps_theta(x_t, y) ||, mean of squares over all values.

    y~ is the prediction as a soft label (probabilities times the label table), so that the gradient reaches
    `logits` [B, K] through the frozen `denoiser`, whose own weights get none. x_t: [B, C, H, W]; t, y: [B].
    `schedule` turns the outputs into noise where the denoiser predicts x_0 or v; None: they are noise.
    """
    with torch.no_grad():
        target, _ = denoiser(x_t, t, y)
    predicted, _ = denoiser(x_t, t, full_precision(logits).softmax(-1))
    assert predicted is not None and target is not None
    predicted, target = full_precision(predicted), full_precision(target)
    if schedule is not None:
        predicted, target = schedule.noise_of(predicted, x_t, t), schedule.noise_of(target, x_t, t)
    return F.mse_loss(predicted, target)


def consistency_loss(logits: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Eq. 8: squared L2 distance of the logits of an image and of its mirror image, mean over the batch. [B, K]."""
    return (full_precision(logits) - full_precision(mirrored)).square().sum(-1).mean()


class ClassifierObjective:
    """Eq. 10: L_CLS = L_CE + lambda_1 L_Cycle + lambda_2 L_CR, with L_CE of eq. 9 (mean over the batch)."""

    def __init__(
        self, lambda_cycle: float, lambda_consistency: float, class_weights: torch.Tensor | None = None
    ) -> None:
        self.lambda_cycle, self.lambda_consistency = lambda_cycle, lambda_consistency
        self.class_weights = class_weights

    def __call__(
        self, logits: torch.Tensor, y: torch.Tensor, cycle: torch.Tensor | None, mirrored: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """logits, mirrored: [B, K]; y: [B]; cycle: the scalar of eq. 7. Terms that are None count as 0."""
        logits = full_precision(logits)
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(logits)  # once: a recorded step may not fetch them
        loss = F.cross_entropy(logits, y, weight=self.class_weights)
        parts = {"cross_entropy": loss.detach()}
        if cycle is not None:
            loss = loss + self.lambda_cycle * cycle
            parts["cycle"] = cycle.detach()
        if mirrored is not None:
            consistency = consistency_loss(logits, mirrored)
            loss = loss + self.lambda_consistency * consistency
            parts["consistency"] = consistency.detach()
        return loss, parts
