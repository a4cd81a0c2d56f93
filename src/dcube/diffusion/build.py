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
        model.aligned, hidden = aligned_block(config, model.middle), config.align.width
        width = config.network.width_of(model.aligned)
        model.side["align"] = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, teacher_width, 1))


def aligned_block(config: DiffusionConfig, middle: str) -> str:
    """The block that imitates the CNN's map (`align.block`)."""
    if config.align.block not in ("matching", "middle"):
        return config.align.block
    if config.align.block == "middle" or config.backbone == "uvit":
        return middle
    wanted, largest = config.align.size // config.align.stride, config.image_size // config.unet.patch
    levels = range(len(config.unet.widths), 0, -1)
    return next((f"up{i}" for i in levels if largest >> (i - 1) >= wanted), "up1")
