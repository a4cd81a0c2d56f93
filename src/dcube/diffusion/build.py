"""From a configuration to its denoiser."""

from dcube.config import DiffusionConfig
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.unet import UNet
from dcube.diffusion.uvit import UViT


def build_denoiser(config: DiffusionConfig, channels: int, num_classes: int) -> Denoiser:
    """The backbone a configuration asks for; a new one is a file beside this and a line here."""
    if config.backbone == "uvit":
        return UViT(config.uvit, config.image_size, channels, num_classes)
    return UNet(config.unet, channels, num_classes)
