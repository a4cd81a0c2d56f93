"""DiffMIC (Yang et al., MICCAI 2023): diffusion of the label towards a guidance network's prediction.

The chain is that of CARD (Han et al., NeurIPS 2022): the prior at T is N(y_hat, I), not N(0, I).
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dcube.baselines.backbones import Builder, Request
from dcube.baselines.base import Parts, Stage, System
from dcube.baselines.guidance import Guidance, backbone
from dcube.diffusion.schedule import Schedule
from dcube.features.subnet import SubNetwork
from dcube.training.order import torch_rng
from dcube.training.runtime import full_precision

MMD_WEIGHT = 0.5
GUIDANCE_RATE = 0.2  # its learning rate (2e-4) relative to the denoiser's (1e-3)
TEMPERATURE = 0.3737  # from a sampled label to probabilities, as in CARD


def noised_label(
    y0: torch.Tensor, prior: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor
) -> torch.Tensor:
    """Forward process: sqrt(ab) y_0 + (1 - sqrt(ab)) y_hat + sqrt(1 - ab) noise. All [B, K]; ab = alpha_bar: [B, 1]."""
    root = alpha_bar.sqrt()
    return root * y0 + (1 - root) * prior + (1 - alpha_bar).sqrt() * noise


def implied_label(
    y_t: torch.Tensor, prior: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor
) -> torch.Tensor:
    """The y_0 that y_t and a noise prediction imply: `noised_label` solved for y_0."""
    root = alpha_bar.sqrt()
    return (y_t - (1 - root) * prior - (1 - alpha_bar).sqrt() * noise) / root


def gaussian_noise(y_t: torch.Tensor, prior: torch.Tensor, alpha_bar: torch.Tensor, spread: float) -> torch.Tensor:
    """The expected noise in y_t for labels y_0 that are N(prior, spread^2)."""
    return (1 - alpha_bar).sqrt() * (y_t - prior) / (alpha_bar * spread**2 + 1 - alpha_bar)


def label_posterior(
    y_t: torch.Tensor, y0: torch.Tensor, prior: torch.Tensor, alpha_bar: torch.Tensor, before: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [B, K] and variance of q(y_s | y_t, y_0, y_hat) for s < t (CARD, eq. 6).

    alpha_bar is that of t, `before` that of s; they need not be neighbours, so that a chain can leave steps out.
    """
    alpha = alpha_bar / before
    of_y0 = (1 - alpha) * before.sqrt() / (1 - alpha_bar)
    of_y_t = (1 - before) * alpha.sqrt() / (1 - alpha_bar)
    of_prior = 1 + (alpha_bar.sqrt() - 1) * (alpha.sqrt() + before.sqrt()) / (1 - alpha_bar)
    variance = (1 - alpha) * (1 - before) / (1 - alpha_bar)
    return of_y0 * y0 + of_y_t * y_t + of_prior * prior, variance


def mmd(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared maximum mean discrepancy of two samples [B, K] under the kernel exp(-|u - v|^2 / K^2). Scalar."""

    def kernel(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(u[:, None] - v[None]).square().mean(2) / u.shape[1]).mean()

    return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)


class TimedLinear(nn.Module):
    """A linear layer whose outputs are scaled by a learnt table over the timesteps, then normalised; softplus."""

    def __init__(self, inside: int, outside: int, timesteps: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inside, outside)
        self.scale = nn.Embedding(timesteps + 1, outside)
        self.norm = nn.BatchNorm1d(outside)
        nn.init.uniform_(self.scale.weight)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return F.softplus(self.norm(self.scale(t) * self.linear(x)))


class LabelDenoiser(nn.Module):
    """eps_theta(x, y_t, y_hat, t): an image encoder whose feature gates a small network of the labels."""

    def __init__(self, encoder: SubNetwork, num_classes: int, width: int, timesteps: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.project, self.norm = nn.Linear(encoder.width, width), nn.BatchNorm1d(width)
        self.first = TimedLinear(2 * num_classes, width, timesteps)
        self.second, self.third = (TimedLinear(width, width, timesteps) for _ in range(2))
        self.last = nn.Linear(width, num_classes)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Image features [B, width]: once per image, whatever the number of steps."""
        feature: torch.Tensor = self.norm(self.project(self.encoder(images).mean((2, 3))))
        return feature

    def forward(
        self, feature: torch.Tensor, y_t: torch.Tensor, prior: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        x = feature * self.first(torch.cat([y_t, prior], dim=1), t)                 # [B, width]
        noise: torch.Tensor = self.last(self.third(self.second(x, t), t))           # [B, K]
        return noise


class DiffMIC(System):
    """Guidance, label denoiser and their chain.

    steps: of the sampled chain, evenly spaced among the `timesteps`. draws: chains averaged per image. pretraining:
    share of the budget in which the guidance alone is trained; afterwards both are. spread: 0 is the paper, whose
    network predicts all the noise; above 0 (ours, for short trainings) it predicts what `gaussian_noise` with that
    deviation leaves, so that an untrained chain ends near its guidance, implied labels are kept within 0 .. 1, and
    the guidance has the whole learning rate as long as it is trained alone.
    """

    def __init__(
        self, guidance: Guidance, encoder: SubNetwork, num_classes: int, width: int = 6144, timesteps: int = 1000,
        steps: int = 1000, draws: int = 1, pretraining: float = 15 / 1000, spread: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.guidance = guidance
        self.denoiser = LabelDenoiser(encoder, num_classes, width, timesteps)
        self.num_classes, self.draws, self.pretraining, self.spread = num_classes, draws, pretraining, spread
        self.schedule = Schedule(timesteps)
        self.times = np.linspace(0, timesteps - 1, min(steps, timesteps)).round().astype(int).tolist()

    def stages(self) -> tuple[Stage, ...]:
        whole_rate = self.guidance.parameter_groups if self.spread else None
        return (
            Stage("guidance", self.pretraining, self.guidance.loss, whole_rate),
            Stage("diffusion", 1 - self.pretraining, self.loss),
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.denoiser.parameters())},
            {"params": list(self.guidance.parameters()), "scale": GUIDANCE_RATE},
        ]

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, rng: torch.Generator
    ) -> tuple[torch.Tensor, Parts]:
        """Noise error on the fused chain, 0.5 (MMD global + MMD local), and the guidance's own cross-entropy, whose
        parameters no other term reaches: the sum stands for the two optimisers of the paper.
        """
        guidance, parts = self.guidance.loss(images, labels, rng)
        priors = self._priors(images)
        y0 = F.one_hot(labels, self.num_classes).to(priors[0])
        noise = torch.randn(y0.shape, generator=rng).to(y0)
        half = torch.randint(self.schedule.timesteps, (len(y0) // 2 + 1,), generator=rng)
        t = torch.cat([half, self.schedule.timesteps - 1 - half])[: len(y0)]  # antithetic
        alpha_bar, t = self.schedule.alpha_bar[t].to(y0)[:, None], t.to(y0.device)
        feature = self.denoiser.encode(images)
        fused, coarse, fine = (
            self._noise(feature, noised_label(y0, prior, noise, alpha_bar), prior, t, alpha_bar) for prior in priors
        )
        error = F.mse_loss(fused, noise)
        discrepancy = MMD_WEIGHT * (mmd(noise, coarse) + mmd(noise, fine))
        loss = error + discrepancy + guidance
        return loss, parts | {"noise": error.detach(), "mmd": discrepancy.detach()}

    def _noise(
        self, feature: torch.Tensor, y_t: torch.Tensor, prior: torch.Tensor, t: torch.Tensor, alpha_bar: torch.Tensor
    ) -> torch.Tensor:
        """The predicted noise [B, K]."""
        noise = full_precision(self.denoiser(feature, y_t, prior, t))
        return noise + gaussian_noise(y_t, prior, alpha_bar, self.spread) if self.spread else noise

    @torch.no_grad()
    def _priors(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Fused, global and local predictions [B, K] as in use: the guidance in evaluation mode, without gradient."""
        mode = self.guidance.training
        self.guidance.eval()
        logits = self.guidance.predict(images)
        self.guidance.train(mode)
        return tuple(full_precision(part).softmax(-1) for part in logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logarithms of the probabilities of seed 0."""
        return self._log_probabilities(images, 0)

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor, seed: int) -> torch.Tensor:
        """Mean over the chains of softmax(-(y_0 - 1)^2 / temperature). The images share the noise of a chain, so that
        an image's answer does not depend on its neighbours.
        """
        return self._log_probabilities(images, seed).exp()

    @torch.no_grad()
    def _log_probabilities(self, images: torch.Tensor, seed: int) -> torch.Tensor:
        prior = self._priors(images)[0]
        y0 = self.sample(self.denoiser.encode(images), prior, seed)                 # [draws, B, K]
        chains = (-(y0 - 1).square() / TEMPERATURE).log_softmax(-1)
        return chains.logsumexp(0) - math.log(self.draws)

    @torch.no_grad()
    def sample(self, feature: torch.Tensor, prior: torch.Tensor, seed: int) -> torch.Tensor:
        """Labels [draws, B, K] from the reverse chain."""
        rng, shape = torch_rng(seed, "label diffusion"), (self.draws, 1, self.num_classes)
        feature = feature.repeat(self.draws, 1)
        many = prior.repeat(self.draws, 1)

        def fresh() -> torch.Tensor:
            return torch.randn(shape, generator=rng).expand(-1, len(prior), -1).flatten(0, 1).to(prior)

        bars = torch.cat([torch.ones(1), self.schedule.alpha_bar[self.times]]).to(prior.dtype)
        y = many + fresh()
        for i in reversed(range(len(self.times))):
            t = torch.full((len(y),), self.times[i], device=y.device)
            y0 = implied_label(y, many, self._noise(feature, y, many, t, bars[i + 1]), bars[i + 1])
            y0 = y0.clamp(0, 1) if self.spread else y0
            mean, variance = label_posterior(y, y0, many, bars[i + 1], bars[i])
            y = mean + variance.sqrt() * fresh()                                    # y_0 itself at the end
        return y.unflatten(0, (self.draws, -1))


def diffmic(name: str, encoder: str | None = None, **sizes: Any) -> Builder:
    """DiffMIC on guidance networks `name` of timm. encoder: the image encoder's network, whose first weights are
    random, as in the paper; None (ours, for short trainings): a third network `name` with the guidance's first weights.
    """

    def build(request: Request) -> tuple[System, str]:
        guidance = Guidance(lambda: backbone(name, request), request.num_classes)
        network = SubNetwork(encoder, "none", request.size) if encoder else backbone(name, request)
        system = DiffMIC(guidance, network, request.num_classes, **sizes)
        return system, f"guidance {guidance.coarse.source}; encoder {'random' if encoder else network.source}"

    return build
