"""Second-order features of maps: how their channels vary together over the places, as a point of a flat space."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dcube.training.order import torch_rng

CHANNELS = 64  # of a map, after mixing
NOTHING = 1e-8  # a variance that is rounding alone
RIDGE = 1e-2  # times the mean variance of an image's channels, added to each


class LogCovariance(nn.Module):
    """Of each map [B, C, h, w] the logarithm of the covariance [c, c] of its channels over its h * w places, its upper
    triangle (off-diagonal entries times sqrt(2): lengths stay); all of them side by side: [B, d] in the maps' dtype.

    A covariance tells the texture and forgets the place. Covariances are no vectors; their logarithms are (Arsigny et
    al. 2006, "Log-Euclidean metrics"), so that a linear model of them makes sense (region covariance: Tuzel et al.
    2006; second-order pooling: Carreira et al. 2012). Maps of more than CHANNELS channels are mixed to that many by a
    fixed random matrix; RIDGE makes the logarithm finite where there are fewer places than channels.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.kept = [min(CHANNELS, width) for width in channels]
        for index, width in enumerate(channels):
            if width > CHANNELS:
                noise = torch.randn(CHANNELS, width, generator=torch_rng(0, "covariance", width))
                self.register_buffer(f"mix{index}", noise / math.sqrt(width))

    @property
    def widths(self) -> list[int]:
        """Features of each map."""
        return [c * (c + 1) // 2 for c in self.kept]

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([self._of(index, m) for index, m in enumerate(maps)], dim=1)

    def _of(self, index: int, found: torch.Tensor) -> torch.Tensor:
        home = torch.device("cpu") if found.device.type == "mps" else found.device  # no eigenvalues, no float64 there
        values, mix = found.flatten(2).to(home).double(), getattr(self, f"mix{index}", None)
        if mix is not None:
            values = mix.to(home).double() @ values
        values = values - values.mean(2, keepdim=True)
        covariance = values @ values.transpose(1, 2) / values.shape[2]
        size = covariance.shape[1]
        ridge = RIDGE * covariance.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
        eigenvalues, vectors = torch.linalg.eigh(covariance + ridge[:, None, None] * torch.eye(size, device=home))
        logarithm = (vectors * eigenvalues.clamp(min=1e-12).log()[:, None]) @ vectors.transpose(1, 2)
        row, column = torch.triu_indices(size, size, device=home)
        triangle = logarithm[:, row, column] * (1 + (row != column).to(logarithm) * (math.sqrt(2) - 1))
        return triangle.to(found.device, found.dtype)


def evened(train: NDArray[np.float32], widths: Sequence[int]) -> NDArray[np.float32]:
    """Factors [d] by which the features of each map, `widths` of them, have one variance in sum over train [n, d]: a
    PCA of all maps is then not one of the largest alone. 0 for a map that is the same for all images; no widths: all
    stay as they are.
    """
    if not widths:
        return np.ones(train.shape[1], np.float32)
    variances = (train - train[0]).var(0)  # float32 finds no exact mean of what does not vary
    sums = [part.sum() for part in np.split(variances, np.cumsum(widths)[:-1])]
    factors = [1 / math.sqrt(total) if total > NOTHING else 0.0 for total in sums]
    return np.repeat(np.array(factors, np.float32), widths)
