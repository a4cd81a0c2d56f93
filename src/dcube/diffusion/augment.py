"""Augmentation that does not leak into samples: the network is told what was done to each image."""

import torch
import torch.nn.functional as F

from dcube.config import AugmentationConfig

PARAMETERS = ("mirror", "rotation", "scale", "shift_x", "shift_y", "brightness", "contrast")
ROTATION = 15.0  # degrees, at most
SCALE, SHIFT, BRIGHTNESS, CONTRAST = 0.1, 0.05, 0.1, 0.2  # deviations: octaves, of the size, of [0, 1], octaves


def draw_parameters(count: int, config: AugmentationConfig, mirror: bool, generator: torch.Generator) -> torch.Tensor:
    """What is done to each of `count` images, [count, len(PARAMETERS)] float32; a row of zeros is nothing.

    Non-leaking augmentation (Karras et al. 2022, appendix F.2): half of the images are mirrored where `mirror` says
    so; each other transformation is applied with `config.probability`. Values are in units of the ranges at strength
    1: mirror 0 or 1, rotation uniform in [-1, 1] times the strength, the others standard normal times the strength.
    """
    values = torch.randn(count, len(PARAMETERS), generator=generator)
    values[:, 1] = 2 * torch.rand(count, generator=generator) - 1
    values = values * config.strength
    values[:, 0] = float(mirror)
    drawn = torch.rand(count, len(PARAMETERS) - 1, generator=generator)
    drawn = drawn < torch.tensor([0.5, *[config.probability] * (len(PARAMETERS) - 2)])
    return values * torch.cat([drawn[:, :4], drawn[:, 3:]], dim=1)  # both shifts are one transformation


def apply_parameters(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Images as `parameters` say, [B, C, S, S] in [-1, 1]; rows of zeros are left as they are, bit for bit.

    What comes in from outside is the image reflected at its edge. Contrast is around the middle of the range.
    """
    mirror, rotation, scale, shift_x, shift_y, brightness, contrast = parameters.unbind(1)
    out = torch.where((mirror > 0)[:, None, None, None], images.flip(-1), images)
    moved = (parameters[:, 1:5] != 0).any(1)
    if moved.any():
        angle = torch.deg2rad(ROTATION * rotation[moved])
        size = 2 ** -(SCALE * scale[moved])  # the grid is where each output pixel comes from
        cos, sin = size * angle.cos(), size * angle.sin()
        x, y = -2 * SHIFT * shift_x[moved], -2 * SHIFT * shift_y[moved]  # affine_grid's side is 2
        forward = torch.stack([cos, sin, cos * x + sin * y, -sin, cos, cos * y - sin * x], dim=1).view(-1, 2, 3)
        part = out[moved]
        grid = F.affine_grid(forward, list(part.shape), align_corners=False)
        out[moved] = F.grid_sample(part, grid, padding_mode="reflection", align_corners=False)
    tinted = (parameters[:, 5:] != 0).any(1)
    factor = 2 ** (CONTRAST * contrast[tinted]).view(-1, 1, 1, 1)
    light = 2 * BRIGHTNESS * brightness[tinted].view(-1, 1, 1, 1)  # the range [-1, 1] is 2 wide
    out[tinted] = (out[tinted] * factor + light).clamp(-1, 1)
    return out
