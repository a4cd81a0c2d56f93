"""The diffusion model as a classifier: the class whose denoising error is lowest (Li et al., ICCV 2023)."""

import numpy as np
import torch

from dcube.diffusion.train import Diffusion
from dcube.errors import InputError
from dcube.training.order import torch_rng

MOST_DRAWS = 10
CHUNK = 128  # forwards of one image under one class at once


@torch.inference_mode()
def denoising_errors(diffusion: Diffusion, images: torch.Tensor, draws: int, seed: int) -> torch.Tensor:
    """Squared error of the noise, summed over an image's values and averaged over the draws: [B, K] float64.

    images: [B, C, S, S] in [0, 1] at the diffusion model's size. A draw is a timestep (evenly spaced over the chain)
    and a noise; all classes and all images share the draws, so that the errors of two classes differ by the class
    alone and an image's do not depend on its neighbours. InputError for more than 10 draws, or none.
    """
    if not 1 <= draws <= MOST_DRAWS:
        raise InputError(f"A diffusion classifier takes 1 .. {MOST_DRAWS} draws of noise, not {draws}.")
    classes, device = len(diffusion.classes), diffusion.device
    spaced = (np.arange(draws) + 0.5) * diffusion.schedule.timesteps / draws
    labels = torch.arange(classes, device=device)
    errors = torch.zeros(len(images), classes, dtype=torch.float64)
    step = max(1, CHUNK // classes)
    for draw, t in enumerate(spaced.astype(int)):
        rng = torch_rng(seed, "diffusion classifier", draw)
        noise = torch.randn(images.shape[1:], generator=rng).to(images)
        for first in range(0, len(images), step):
            x0 = images[first : first + step].to(device) * 2 - 1
            fresh = noise.to(x0).expand_as(x0)
            times = torch.full((len(x0),), int(t), device=device)
            x_t = diffusion.schedule.add_noise(x0, fresh, times)
            x_t, times = x_t.repeat_interleave(classes, 0), times.repeat_interleave(classes)
            output, _ = diffusion.model(x_t, times, labels.repeat(len(x0)))
            assert output is not None
            predicted = diffusion.schedule.noise_of(output, x_t, times).cpu().double()
            wrong = (predicted - noise.cpu().double()).square().flatten(1).sum(1)
            errors[first : first + step] += wrong.view(-1, classes)
    return errors / draws


def diffusion_classifier(diffusion: Diffusion, images: torch.Tensor, draws: int, seed: int) -> torch.Tensor:
    """Probabilities [B, K] float64, proportional to exp(-error) for classes that are equally frequent."""
    return (-denoising_errors(diffusion, images, draws, seed)).softmax(1)
