"""CPT's pretext task: geometric pseudo-shapes put into images, and their masks. The figures below are ours."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

KINDS = ("ellipse", "polygon", "blob")
MOST_SHAPES = 5  # per image: 1 .. 5
RADII = 0.05, 0.2  # share of the image's side
OPACITY = 0.15, 0.5  # of a shape inside
EDGE = 0.005  # width of the soft edge, share of the side
WAVES = 4  # of a blob's outline
NEVER = 1e-6


@dataclass(frozen=True)
class Shapes:
    """n shapes for each of B images; positions and radii are shares of the side, angles in radians.

    Every shape is seen from its centre: its outline is a radius for each direction.
    """

    kind: torch.Tensor  # [B, n] int64, index of KINDS
    centre: torch.Tensor  # [B, n, 2] row, column
    radius: torch.Tensor  # [B, n, 2] half axes of an ellipse; the first is that of the others
    angle: torch.Tensor  # [B, n]
    corners: torch.Tensor  # [B, n] of a polygon
    waves: torch.Tensor  # [B, n, WAVES, 2] cosine and sine parts of a blob's outline, relative to its radius
    opacity: torch.Tensor  # [B, n]
    present: torch.Tensor  # [B, n] bool


def draw_shapes(batch: int, rng: torch.Generator) -> Shapes:
    """1 .. 5 shapes for each of `batch` images."""
    count = torch.randint(1, MOST_SHAPES + 1, (batch, 1), generator=rng)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand((batch, MOST_SHAPES, *shape), generator=rng)

    return Shapes(
        kind=torch.randint(len(KINDS), (batch, MOST_SHAPES), generator=rng),
        centre=uniform(0.1, 0.9, 2),
        radius=uniform(*RADII, 2),
        angle=uniform(0, 2 * math.pi),
        corners=torch.randint(3, 7, (batch, MOST_SHAPES), generator=rng),
        waves=uniform(-0.15, 0.15, WAVES, 2),
        opacity=uniform(*OPACITY),
        present=torch.arange(MOST_SHAPES) < count,
    )


def depth_inside(shapes: Shapes, size: int) -> torch.Tensor:
    """[B, n, size, size]: how far a pixel's centre lies inside an outline along the ray from the shape's centre, as a
    share of the side; negative outside."""
    axis = (torch.arange(size, dtype=shapes.centre.dtype) + 0.5) / size
    down = axis[:, None] - shapes.centre[..., 0, None, None]                       # [B, n, size, 1]
    across = axis[None, :] - shapes.centre[..., 1, None, None]                     # [B, n, 1, size]
    distance = (down.square() + across.square()).sqrt()
    turned = torch.atan2(down, across) - shapes.angle[..., None, None]
    long, short = shapes.radius[..., 0, None, None], shapes.radius[..., 1, None, None]
    ellipse = long * short / ((short * turned.cos()).square() + (long * turned.sin()).square()).sqrt()
    sector = 2 * math.pi / shapes.corners[..., None, None]
    polygon = long * (sector / 2).cos() / (torch.remainder(turned, sector) - sector / 2).cos()
    orders = torch.arange(1, WAVES + 1) * turned[..., None]                        # [B, n, size, size, WAVES]
    wave = shapes.waves[..., None, None, :, :]
    blob = long * (1 + (wave[..., 0] * orders.cos() + wave[..., 1] * orders.sin()).sum(-1)).clamp(min=0.2)
    outlines = torch.stack([ellipse, polygon, blob], dim=2)                        # [B, n, 3, size, size]
    chosen = shapes.kind[..., None, None, None].expand(-1, -1, 1, size, size)
    return outlines.gather(2, chosen)[:, :, 0] - distance


def paint(images: torch.Tensor, shapes: Shapes) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [B, C, S, S] in [0, 1] with the shapes blended in, and the mask [B, 1, S, S] float32 of what lies inside.

    A shape is blended with white where the image under it is dark on average and with black where it is bright, so
    that it always shows; its edge is soft, and the mask ends in the middle of it.
    """
    depth = depth_inside(shapes, images.shape[-1]).to(images)
    present = shapes.present[..., None, None].to(images.device)
    inside = (depth > 0) & present                                                 # [B, n, S, S]
    cover = torch.sigmoid(depth / EDGE) * shapes.opacity[..., None, None].to(images) * present
    grey = images.mean(1)
    for i in range(depth.shape[1]):
        under = inside[:, i].to(images)
        mean = (grey * under).sum((1, 2)) / under.sum((1, 2)).clamp(min=NEVER)     # [B]
        target = (mean < 0.5).to(images)[:, None, None, None]
        images = images + cover[:, i, None] * (target - images)
    return images, inside.any(1, keepdim=True).float()


def insert_shapes(images: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with random shapes put into them, and their mask. images: [B, C, S, S] in [0, 1]; a CPU generator."""
    return paint(images, draw_shapes(len(images), rng))


def segmentation_loss(logits: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary cross-entropy plus 1 - Dice; and the Dice coefficient, a mean over the images. Both [B, 1, S, S]."""
    chance = logits.sigmoid()
    both, total = (chance * mask).sum((1, 2, 3)), (chance + mask).sum((1, 2, 3))
    dice = ((2 * both + 1) / (total + 1)).mean()
    return F.binary_cross_entropy_with_logits(logits, mask) + 1 - dice, dice.detach()
