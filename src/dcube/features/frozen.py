"""Features of the selected blocks for step 2: live from the frozen model, or from a cache on disk."""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dcube.data.dataset import ImageData
from dcube.diffusion.train import Diffusion
from dcube.features.taps import block_maps
from dcube.files import atomic_write, digest
from dcube.progress import progress

CHUNK = 32  # images per forward


class FrozenFeatures:
    """Maps [B, C_b, h_b, w_b] of the selected blocks, h_b and w_b at most `grid` (larger ones averaged down)."""

    def __init__(self, diffusion: Diffusion, blocks: list[int], mode: str, grid: int) -> None:
        self.diffusion, self.mode, self.grid = diffusion, mode, grid
        self.blocks = [diffusion.model.blocks[i] for i in blocks]
        size = diffusion.config.image_size
        blank = torch.zeros(1, diffusion.channels, size, size, device=diffusion.device)
        maps = self(blank, torch.zeros(1, dtype=torch.long, device=blank.device))
        self.shapes: list[tuple[int, int, int]] = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]

    def __call__(self, images: torch.Tensor, t: torch.Tensor) -> list[torch.Tensor]:
        """images: [B, C, S, S] in [0, 1] at the diffusion model's size; t: [B] int64."""
        maps = block_maps(self.diffusion, images, t, self.blocks, self.mode)
        with torch.inference_mode():
            return [F.adaptive_avg_pool2d(m, self.grid) if m.shape[-1] > self.grid else m for m in maps]

    def name(self) -> str:
        """A name that differs wherever the features do: weights, blocks, input and grid."""
        weights = hashlib.sha256()
        for tensor in self.diffusion.model.state_dict().values():
            weights.update(tensor.cpu().numpy().tobytes())
        return digest([weights.hexdigest(), self.blocks, self.mode, self.grid, self.diffusion.config.image_size])


class FeatureCache:
    """Features of a fixed set of timesteps for given images, as they are and mirrored, in float16 on disk.

    Made once, then memory-mapped; its file name holds the model, the store and the settings, so that a cache
    of another model or store is never used.
    """

    def __init__(
        self, frozen: FrozenFeatures, data: ImageData, indices: np.ndarray, timesteps: tuple[int, ...],
        flips: bool, directory: Path,
    ) -> None:  # fmt: skip
        self.shapes, self.sizes = frozen.shapes, [int(np.prod(shape)) for shape in frozen.shapes]
        self.timesteps = timesteps
        key = digest([frozen.name(), data.store.key, indices.tolist(), timesteps, flips])
        path = directory / f"features-{key}.f16"
        shape = (len(indices), 1 + flips, len(timesteps), sum(self.sizes))
        if not path.exists():
            for left_over in directory.glob(".features-*.tmp.f16"):  # of a process that was killed; they can be large
                left_over.unlink()
            atomic_write(path, lambda temporary: self._fill(temporary, shape, frozen, data, indices))
        self.values = np.memmap(path, dtype=np.float16, mode="r", shape=shape)

    @staticmethod
    def gigabytes(frozen: FrozenFeatures, images: int, timesteps: int, flips: bool) -> float:
        """Size on disk."""
        return images * (1 + flips) * timesteps * sum(int(np.prod(s)) for s in frozen.shapes) * 2 / 1e9

    def maps(self, rows: np.ndarray, flipped: np.ndarray, at: np.ndarray) -> list[torch.Tensor]:
        """Maps [B, C_b, h_b, w_b] float32 of cache rows [B], mirrored where `flipped` [B], timestep number `at` [B]."""
        values = torch.from_numpy(self.values[rows, flipped.astype(int), at].astype(np.float32))
        return [part.view(-1, *shape) for part, shape in zip(values.split(self.sizes, 1), self.shapes, strict=True)]

    def _fill(
        self, path: Path, shape: tuple[int, ...], frozen: FrozenFeatures, data: ImageData, indices: np.ndarray
    ) -> None:
        """Written in order, not through a memory map: a full disk is then an error, not a bus error."""
        device, limit = frozen.diffusion.device, torch.finfo(torch.float16).max
        with open(path, "wb") as handle, progress("features", len(indices)) as advance:
            for start in range(0, len(indices), CHUNK):
                images = data.images(indices[start : start + CHUNK], frozen.diffusion.config.image_size).to(device)
                values = np.empty((len(images), *shape[1:]), np.float16)
                for flip in range(shape[1]):
                    view = images.flip(-1) if flip else images
                    for at, step in enumerate(self.timesteps):
                        t = torch.full((len(view),), step, device=device)
                        flat = torch.cat([m.flatten(1) for m in frozen(view, t)], dim=1)
                        values[:, flip, at] = flat.clamp(-limit, limit).half().cpu().numpy()
                handle.write(values.tobytes())
                advance(min(start + CHUNK, len(indices)), "")
