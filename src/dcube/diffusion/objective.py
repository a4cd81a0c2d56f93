"""Objective of step 1 (eq. 3-5)."""

import torch
import torch.nn.functional as F
from torch import nn

from dcube.config import AlignConfig, ContrastiveConfig, DiffusionConfig
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.contrastive import alignment_loss, label_term
from dcube.diffusion.schedule import Schedule
from dcube.training.runtime import full_precision

GAMMA = {"min_snr": 5.0, "p2": 1.0}  # the papers' own


def noise_loss(predicted: torch.Tensor, noise: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Eq. 3, read as the text says it: mean squared error of the noise (or of x_0, or v) over all values.

    predicted, noise: [B, C, H, W]; weight: [B] of the images, None for 1. Scalar.
    """
    predicted, noise = full_precision(predicted), full_precision(noise)
    if weight is None:
        return F.mse_loss(predicted, noise)
    return (weight.to(predicted) * (predicted - noise).square().flatten(1).mean(1)).mean()


def loss_weights(schedule: Schedule, config: DiffusionConfig) -> torch.Tensor | None:
    """Weight of the squared error of the network's output at each timestep, [T] float64; None where all are 1.

    Both are weights of the error of x_0 brought to the error of what is predicted, which is SNR times (noise) or
    SNR + 1 times (v) as large. "min_snr": min(SNR, gamma) (Hang et al. 2023, section 3.4); "p2": SNR / (1 + SNR)^gamma
    (Choi et al. 2022, eq. 8 with k = 1), with which the noise's error has 1 / (1 + SNR)^gamma.
    """
    if config.weighting == "none":
        return None
    snr, gamma = schedule.snr, config.gamma or GAMMA[config.weighting]
    of_x0 = snr.clamp(max=gamma) if config.weighting == "min_snr" else snr / (1 + snr) ** gamma
    return of_x0 / {"noise": snr, "x0": torch.ones_like(snr), "v": snr + 1}[schedule.prediction]


class GenerativeObjective:
    """Eq. 5: L_Gen = L_Cont + L_Diff(x_t^1) + L_Diff(x_t^2); one forward for both images of a pair.

    `align` adds REPA's term on one block, where a teacher's features come with the batch. `weights`: [T] of eq. 3
    (`loss_weights`), None for 1.
    """

    def __init__(
        self, schedule: Schedule, config: ContrastiveConfig, middle: str, align: AlignConfig | None = None,
        weights: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self.schedule, self.config, self.middle = schedule, config, middle
        self.align = align or AlignConfig()
        self.weights = None if weights is None else weights.float()

    def __call__(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, same: torch.Tensor,
        t: torch.Tensor, noise: torch.Tensor, dropped: torch.Tensor, teacher: torch.Tensor | None = None,
        augmentation: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
        """x: [B, 2, C, H, W] in [-1, 1]; y, dropped (label replaced by null): [B, 2]; same, t: [B];
        noise: [B, C, H, W], shared by the pair like t; teacher: [B, 2, D, s, s]; augmentation: [B, 2, A],
        what was done to the images. Returns the loss and its parts.
        """
        core = model if isinstance(model, Denoiser) else model.module  # wrapped for many processes
        assert isinstance(core, Denoiser)
        own_forward = self.config.weight > 0 and self.config.label == "null"
        taps = [self.middle] if self.config.weight and not own_forward else []
        taps += [core.aligned] if teacher is not None and core.aligned not in taps else []
        t2, noise2 = t.repeat(2), noise.repeat(2, 1, 1, 1)
        images, classes = x.transpose(0, 1).flatten(0, 1), y.T.flatten()
        x_t = self.schedule.add_noise(images, noise2, t2)
        labels = torch.where(dropped.T.flatten(), core.null_label, classes)
        told = None if augmentation is None else augmentation.transpose(0, 1).flatten(0, 1)
        predicted, features = model(x_t, t2, labels, taps, augmentation=told)
        wanted, weight = self.schedule.target(images, noise2, t2), self._weight(t)
        first, second = (noise_loss(p, w, weight) for p, w in zip(predicted.chunk(2), wanted.chunk(2), strict=True))
        parts = {"diffusion": (first + second).detach()}
        loss = first + second
        if teacher is not None:
            aligned = alignment_loss(features["side.align"], teacher.transpose(0, 1).flatten(0, 1))
            loss = loss + self.align.weight * aligned
            parts["align"] = aligned.detach()
        if self.config.weight:
            if own_forward:  # features that cannot know the label, at noise that leaves something to see
                low = (t2 * self.config.horizon).long()
                x_low = x_t if self.config.horizon == 1 else self.schedule.add_noise(images, noise2, low)
                _, features = model(x_low, low, None, (self.middle,), True, told)
            feature = features[self.middle]
            if self.config.distance != "paper":
                feature = core.as_map(feature)
            side = {name.removeprefix("side."): v for name, v in features.items()}
            term, figures = label_term(self.config, feature, side, classes, same)
            loss = loss + self.config.weight * term
            parts |= figures
        return loss, parts

    def _weight(self, t: torch.Tensor) -> torch.Tensor | None:
        if self.weights is None:
            return None
        self.weights = self.weights.to(t.device)
        return self.weights[t]
