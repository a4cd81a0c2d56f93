"""Step 1's own network as f_sub: a copy of its way down, trained further with the labels."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from dcube.config import ClassifierConfig, FeaturesConfig
from dcube.diffusion.train import Diffusion


class FineTuned(nn.Module):
    """The denoiser up to its middle block as a classifier's network (fine-tuning as in Xiang et al. 2023, "Denoising
    diffusion autoencoders are unified self-supervised learners"; there one block is read, here all on the way down).

    Input [B, C, S, S] in [0, 1] at the diffusion model's size, without noise, at one timestep, under the null label.
    Output [B, width, s, s]: every map on the way down averaged to the places of the smallest, side by side, each
    channel normalised over the batch.
    """

    source = "step 1, trained further"

    def __init__(self, diffusion: Diffusion, timestep: int) -> None:
        super().__init__()
        self.model, self.timestep = copy.deepcopy(diffusion.model), timestep
        self.model.end_at_middle()
        self.model.requires_grad_(True)
        names = self.model.blocks
        self.blocks = names[: names.index(self.model.middle) + 1]
        size = diffusion.config.image_size
        with torch.inference_mode():
            found = self._maps(torch.zeros(1, diffusion.channels, size, size, device=diffusion.device))
        self.model.train()  # only now: dropout would have drawn random numbers
        self.width = sum(m.shape[1] for m in found)
        self.norm = nn.BatchNorm2d(self.width).to(diffusion.device)

    def _maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        t = torch.full((len(images),), self.timestep, device=images.device)
        _, found = self.model(images * 2 - 1, t, None, taps=self.blocks, stop=True)
        return [self.model.as_map(found[name]) for name in self.blocks]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self._maps(images)
        side = min(m.shape[-1] for m in maps)
        evened: torch.Tensor = self.norm(torch.cat([F.adaptive_avg_pool2d(m, side) for m in maps], 1))
        return evened


def fine_tuned(diffusion: Diffusion, config: ClassifierConfig, features: FeaturesConfig) -> FineTuned | None:
    """f_sub where it is to be step 1's own network; None where it is the CNN."""
    if config.sub_network == "cnn":
        return None
    return FineTuned(diffusion, min(features.prediction_timesteps))
