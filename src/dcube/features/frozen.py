"""Features of the selected blocks for step 2: live from the frozen model, or from a cache on disk."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import nn

from dcube.data.dataset import ImageData
from dcube.diffusion.train import Diffusion
from dcube.features.taps import block_maps
from dcube.files import atomic_write, digest, read_json, write_json
from dcube.progress import progress
from dcube.training.runtime import fast_dtype, full_precision, precision
from dcube.training.team import is_helper

CHUNK = 32  # images per forward
CPU_VALUES = 9_000_000  # on a CPU, of a layer's output in one forward: larger ones leave the processor's cache
FORMAT = 2  # of a cache on disk
SHARE_OF_CARD = 0.5  # of a GPU's free memory that a cache may take


class FrozenFeatures:
    """Maps [B, C_b, h_b, w_b] of the selected blocks, h_b and w_b at most `grid` (larger ones averaged down).

    `dtype`: bfloat16 lets the model multiply in it (training, where the hardware is fast at it); the maps are float32.
    """

    def __init__(
        self, diffusion: Diffusion, blocks: list[int], mode: str, grid: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.diffusion, self.mode, self.grid, self.dtype = diffusion, mode, grid, dtype
        self.blocks = [diffusion.model.blocks[i] for i in blocks]
        diffusion.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
        size = diffusion.config.image_size
        blank = torch.zeros(1, diffusion.channels, size, size, device=diffusion.device)
        with _outputs(diffusion.model) as values:
            maps = self._maps(blank, torch.zeros(1, dtype=torch.long, device=blank.device))
        self.at_once = max(1, CPU_VALUES // max(values, default=1)) if blank.device.type == "cpu" else None
        self.shapes: list[tuple[int, int, int]] = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]

    def __call__(self, images: torch.Tensor, t: torch.Tensor) -> list[torch.Tensor]:
        """images: [B, C, S, S] in [0, 1] at the diffusion model's size; t: [B] int64."""
        size = self.at_once or max(1, len(images))
        parts = [self._maps(*part) for part in zip(images.split(size), t.split(size), strict=True)]
        return parts[0] if len(parts) == 1 else [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _maps(self, images: torch.Tensor, t: torch.Tensor) -> list[torch.Tensor]:
        """In one forward."""
        with torch.inference_mode(), precision(self.diffusion.device, self.dtype):
            maps = [full_precision(m) for m in block_maps(self.diffusion, images, t, self.blocks, self.mode)]
            return [F.adaptive_avg_pool2d(m, self.grid) if m.shape[-1] > self.grid else m for m in maps]

    def name(self) -> str:
        """A name that differs wherever the features do: weights, blocks, input, grid and dtype."""
        weights = hashlib.sha256()
        for tensor in self.diffusion.model.state_dict().values():
            weights.update(tensor.cpu().numpy().tobytes())
        settings = [self.blocks, self.mode, self.grid, self.diffusion.config.image_size, str(self.dtype)]
        return digest([weights.hexdigest(), *settings])


@contextlib.contextmanager
def _outputs(model: nn.Module) -> Iterator[list[int]]:
    """Inside, the number of values that every layer gives is noted."""
    values: list[int] = []

    def note(_: nn.Module, __: Any, out: Any) -> None:
        values.extend([out.numel()] if isinstance(out, torch.Tensor) else [])

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        yield values
    finally:
        for hook in hooks:
            hook.remove()


def frozen_dtype(chosen: str, device: torch.device, directory: Path) -> torch.dtype:
    """dtype of the frozen model in a training in `directory`: the `chosen` one, or for "auto" what the hardware was
    fast at when the training began; DIRECTORY/frozen.json keeps that, also for another machine.
    """
    if chosen != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[chosen]
    file = directory / "frozen.json"
    if is_helper() and not file.exists():
        return fast_dtype(device)  # as the first process finds
    if not file.exists():
        write_json(file, {"dtype": str(fast_dtype(device)).removeprefix("torch.")})
    dtype: torch.dtype = getattr(torch, read_json(file)["dtype"])
    return dtype


def flat_features(
    frozen: FrozenFeatures, data: ImageData, rows: np.ndarray, timesteps: Sequence[int]
) -> list[np.ndarray]:
    """Each block's map of rows of the store, averaged over the timesteps, flattened: [n, d_b] float32, for probes."""
    device, size = frozen.diffusion.device, frozen.diffusion.config.image_size
    chunks = []
    for start in range(0, len(rows), CHUNK):
        images = data.images(rows[start : start + CHUNK], size).to(device)
        steps = [frozen(images, torch.full((len(images),), t, device=device)) for t in timesteps]
        chunks.append([torch.stack(maps).mean(0).flatten(1).cpu().numpy() for maps in zip(*steps, strict=True)])
    return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]


class FeatureCache:
    """Features of a fixed set of timesteps for given images, as they are and mirrored, in float16 on disk, with the
    channels last (batch normalisation is several times faster so).

    Made once, then memory-mapped; its file name holds the model, the store and the settings, so that a cache
    of another model or store is never used.
    """

    def __init__(
        self, frozen: FrozenFeatures, data: ImageData, indices: np.ndarray, timesteps: tuple[int, ...],
        flips: bool, directory: Path,
    ) -> None:  # fmt: skip
        self.shapes, self.sizes = frozen.shapes, [int(np.prod(shape)) for shape in frozen.shapes]
        self.timesteps = timesteps
        key = digest([FORMAT, frozen.name(), data.store.key, indices.tolist(), timesteps, flips])
        path = directory / f"features-{key}.f16"
        shape = (len(indices), 1 + flips, len(timesteps), sum(self.sizes))
        with FileLock(directory / ".features.lock"):  # of several processes of a training one makes it, the others wait
            if not path.exists():
                for left_over in directory.glob(".features-*.tmp.f16"):  # of a killed process; they can be large
                    left_over.unlink()
                atomic_write(path, lambda temporary: self._fill(temporary, shape, frozen, data, indices))
        self.values = np.memmap(path, dtype=np.float16, mode="r", shape=shape)
        self.on_card = _on_card(self.values, frozen.diffusion.device)

    @staticmethod
    def gigabytes(frozen: FrozenFeatures, images: int, timesteps: int, flips: bool) -> float:
        """Size on disk."""
        return images * (1 + flips) * timesteps * sum(int(np.prod(s)) for s in frozen.shapes) * 2 / 1e9

    def maps(self, rows: np.ndarray, flipped: np.ndarray, at: np.ndarray) -> list[torch.Tensor]:
        """Maps [B, C_b, h_b, w_b] float16 of cache rows [B], mirrored where `flipped` [B], timestep number `at` [B]; on
        the GPU where the cache has a copy there, else on the CPU.
        """
        if self.on_card is None:
            values = torch.from_numpy(self.values[rows, flipped.astype(int), at])
        else:  # by one number each, fetched from pinned memory: nothing waits for the work that the card still has
            assert self.values.shape[1] == 2 or not np.any(flipped)  # the next image would be read instead
            where = (rows * self.values.shape[1] + flipped) * self.values.shape[2] + at
            number = torch.from_numpy(where.astype(np.int64)).pin_memory().to(self.on_card.device, non_blocking=True)
            values = self.on_card.flatten(0, 2).index_select(0, number)
        parts = zip(values.split(self.sizes, 1), self.shapes, strict=True)
        return [part.view(-1, h, w, c).permute(0, 3, 1, 2) for part, (c, h, w) in parts]

    def _fill(
        self, path: Path, shape: tuple[int, ...], frozen: FrozenFeatures, data: ImageData, indices: np.ndarray
    ) -> None:
        """Written in order, not through a memory map: a full disk is then an error, not a bus error."""
        device, limit, flips = frozen.diffusion.device, torch.finfo(torch.float16).max, shape[1]
        chunk = CHUNK // flips
        with open(path, "wb") as handle, progress("features", len(indices)) as advance:
            for start in range(0, len(indices), chunk):
                images = data.images(indices[start : start + chunk], frozen.diffusion.config.image_size).to(device)
                views = torch.cat([images, images.flip(-1)][:flips])
                values = torch.empty((len(images), *shape[1:]), dtype=torch.float16)
                for at, step in enumerate(self.timesteps):
                    parts = frozen(views, torch.full((len(views),), step, device=device))
                    for held, part in zip(values[:, :, at].split(self.sizes, 2), parts, strict=True):
                        flat = part.clamp(-limit, limit).permute(0, 2, 3, 1).flatten(1)  # channels last
                        held.copy_(flat.unflatten(0, (flips, -1)).transpose(0, 1))
                handle.write(values.numpy().data)
                advance(min(start + chunk, len(indices)), "")


def _on_card(values: np.ndarray, device: torch.device) -> torch.Tensor | None:
    """A copy of a cache on a CUDA device with room for it, made row by row; None elsewhere."""
    if device.type != "cuda" or values.nbytes > SHARE_OF_CARD * torch.cuda.mem_get_info(device)[0]:
        return None
    copy = torch.empty(values.shape, dtype=torch.float16, device=device)
    for row, held in zip(values, copy, strict=True):
        held.copy_(torch.from_numpy(np.array(row)))
    return copy
