"""From a configuration to its denoiser, and the side heads that only its training has."""

import torch
from torch import nn

from dcube.config import DiffusionConfig
from dcube.diffusion.augment import PARAMETERS
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.unet import UNet
from dcube.diffusion.uvit import UViT
from dcube.training.order import key

PROJECTION = 128  # values of the supervised contrastive projection (Khosla et al. 2020)


def build_denoiser(config: DiffusionConfig, channels: int, num_classes: int) -> Denoiser:
    """The backbone a configuration asks for; a new one is a file beside this and a line here."""
    model: Denoiser
    if config.backbone == "uvit":
        model = UViT(config.uvit, config.image_size, channels, num_classes)
    else:
        model = UNet(config.unet, channels, num_classes)
    if config.augmentation.probability:
        model.tell_augmentation(len(PARAMETERS))
    return model


def initial_denoiser(config: DiffusionConfig, channels: int, num_classes: int, seed: int) -> Denoiser:
    """The network as a training with this seed begins with it."""
    torch.manual_seed(key(seed, "diffusion", "weights"))
    return build_denoiser(config, channels, num_classes)


class Pooled(nn.Sequential):
    """Layers on the mean over the positions of a map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mean((2, 3)))  # type: ignore[no-any-return]


def add_side_heads(model: Denoiser, config: DiffusionConfig, teacher_width: int | None, seed: int) -> None:
    """Heads of the terms beside eq. 3, where the configuration has such terms; they are not saved with the weights.

    teacher_width: channels of the network that `align` imitates, None without one.
    """
    torch.manual_seed(key(seed, "diffusion", "side heads"))
    width = config.network.width_of(model.middle)
    form = config.contrastive.form if config.contrastive.weight else None
    if form == "supervised":
        model.side["projection"] = Pooled(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION))
    if form == "auxiliary":
        model.side["auxiliary"] = Pooled(nn.Linear(width, model.num_classes))
    if teacher_width is not None:
        places = {"last_down": -1, "middle": 0, "first_up": 1}
        named, hidden = config.align.block, config.align.width
        at = model.blocks.index(model.middle) + places[named] if named in places else model.blocks.index(named)
        model.aligned = model.blocks[at]
        width = config.network.width_of(model.aligned)
        model.side["align"] = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, teacher_width, 1))
