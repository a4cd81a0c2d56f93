"""The frozen CNN that a block of the denoiser imitates during step 1 (`diffusion.align`)."""

import time

import numpy as np
import torch

from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.features.subnet import SubNetwork
from dcube.progress import progress
from dcube.training.order import key, numpy_rng
from dcube.training.runtime import pick_device

CHUNK = 32  # images per forward
HELD_GB = 2.0  # maps of the training set are held in memory up to this size at most
SCALE_IMAGES = 512  # training images that give the mean and the deviation of the channels, at most


def make_teacher(data: ImageData, settings: Experiment) -> "CnnTeacher | None":
    """The teacher of a step 1 as long as the settings say, where they ask for one."""
    if not settings.diffusion.align.weight:
        return None
    teacher = CnnTeacher(data, settings)
    if teacher.pays(settings.diffusion.optimizer.total_steps(len(teacher.rows))):
        teacher.hold()
    return teacher


class CnnTeacher:
    """Maps [n, width, s, s] of the CNN of `diffusion.align` for training images: made as they are asked for, on the
    device of the training, until they are held, on the CPU.

    Each channel has mean 0 and deviation 1 over the training images: as they come, the positions of all images point
    nearly the same way, and a network has a high cosine with them that knows nothing of the image.
    """

    def __init__(self, data: ImageData, settings: Experiment) -> None:
        self.config, self.data = settings.diffusion.align, data
        self.batch = 2 * settings.diffusion.optimizer.batch_size  # images of a step
        torch.manual_seed(key(settings.seed, "teacher", "weights"))  # where they are random
        network = SubNetwork(self.config.cnn, settings.classifier.cnn_weights, self.config.size)
        self.network = network.eval().requires_grad_(False).to(pick_device(settings.runtime.device))
        self.rows = data.indices("train")
        self.mean: torch.Tensor | float = 0.0
        self.scale: torch.Tensor | float = 1.0
        some = numpy_rng(settings.seed, "teacher").permutation(self.rows)[:SCALE_IMAGES]
        chunks = [some[start : start + CHUNK] for start in range(0, len(some), CHUNK)]
        begin = time.monotonic()
        maps = torch.cat([self._maps(rows, np.zeros(len(rows), bool)) for rows in chunks])
        self.width = maps.shape[1]
        self.gigabytes = 2 * len(self.rows) * maps[0].numel() * 2 / 1e9  # of all maps, held
        self.held: torch.Tensor | None = None
        deviation = maps.std((0, 2, 3))
        floor = 0.01 * float(deviation.mean()) + 1e-6  # a channel that hardly moves says nothing, and is not blown up
        self.seconds = (time.monotonic() - begin) / len(some) * 2 * len(self.rows)  # that all maps would take
        self.mean, self.scale = maps.mean((0, 2, 3))[:, None, None], deviation.clamp(min=floor)[:, None, None]

    def pays(self, steps: int) -> bool:
        """Whether to hold all maps: a training of `steps` asks for more of them than there are, and they fit."""
        return steps * self.batch > 2 * len(self.rows) and self.gigabytes <= HELD_GB

    def hold(self) -> None:
        """Make all maps now."""
        self.held = self._all()

    def __call__(self, positions: np.ndarray, flipped: np.ndarray) -> torch.Tensor:
        """[n, width, s, s] of the training images at `positions` [n], mirrored where `flipped` [n] bool."""
        if self.held is not None:
            return self.held[torch.from_numpy(positions), torch.from_numpy(flipped.astype(np.int64))].float()
        return self._maps(self.rows[positions], flipped).clone()  # inference tensors cannot be saved for backward

    @torch.inference_mode()
    def _maps(self, rows: np.ndarray, flipped: np.ndarray) -> torch.Tensor:
        images, mirrored = self.data.images(rows, self.config.size), torch.from_numpy(flipped)[:, None, None, None]
        images = torch.where(mirrored, images.flip(-1), images)
        device = self.network.mean.device
        if device.type == "cuda":
            images = images.pin_memory()  # a thread that loads batches does not wait for the work the card still has
        maps = self.network.level(images.to(device, non_blocking=True), self.config.stride)
        return (maps - self.mean) / self.scale  # type: ignore[no-any-return]

    def _all(self) -> torch.Tensor:
        """[n, 2, width, s, s] float16: every training image as it is and mirrored."""
        parts = []
        with progress("teacher", len(self.rows)) as advance:
            for start in range(0, len(self.rows), CHUNK):
                rows = self.rows[start : start + CHUNK]
                both = [self._maps(rows, np.full(len(rows), mirror)).half().cpu() for mirror in (False, True)]
                parts.append(torch.stack(both, dim=1))
                advance(start + len(rows), "")
        return torch.cat(parts)
