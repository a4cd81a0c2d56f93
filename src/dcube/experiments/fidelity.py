"""Does the fast sampler draw what the 1000-step sampler draws? Distances between sets of samples."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dcube.diffusion.train import Diffusion
from dcube.evaluation.frechet import frechet_distance
from dcube.features.subnet import OFFLINE_MODEL, SubNetwork
from dcube.files import atomic_write, digest
from dcube.progress import progress

CHUNK = 96  # images per file: what an interruption can cost
TOLERANCE = 1.05  # no further than two seeds of the slow sampler are from each other, plus 5 %
SIZE = 224  # pixels at which the extractor sees the images


def compare_samplers(
    diffusion: Diffusion, n: int, steps: tuple[int, ...], out: Path, seed: int = 0, sampler: str = "sde",
    dtype: str = "fp32", device: torch.device | str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Frechet distances between n images of the fast `sampler` at each number of `steps`, and of the ancestral one over
    all timesteps: A begins with the same noise as the fast one, B with another seed. Classes take turns.

    dtype: of the fast sampler's forward passes; the ancestral one's are in fp32. The images are kept in `out`, 96 to
    a file, and not drawn again. Returns {"a_to_b": float, "bound": 1.05 * a_to_b, "fast": {steps: {"to_a", "to_b",
    "within"}}, "extractor", "n"}.
    """
    network = SubNetwork(OFFLINE_MODEL, "offline").eval().to(device)

    def features(changes: dict[str, Any], seed: int) -> np.ndarray:
        return pooled_features(network, draw(diffusion, n, changes, seed, out))

    a, b = (features({"sampler": "ddpm", "sample_dtype": "fp32"}, s) for s in (seed, seed + 1))
    between = frechet_distance(a, b)
    fast: dict[str, dict[str, Any]] = {}
    for count in steps:
        drawn = features({"sampler": sampler, "sample_steps": count, "sample_dtype": dtype}, seed)
        to_a = frechet_distance(drawn, a)
        fast[str(count)] = {
            "to_a": to_a, "to_b": frechet_distance(drawn, b), "within": to_a <= TOLERANCE * between,
        }  # fmt: skip
    return {
        "n": n, "seed": seed, "sampler": sampler, "dtype": dtype, "image_size": diffusion.config.image_size,
        "extractor": f"{OFFLINE_MODEL}, {network.source}, {SIZE} px, mean of the last map",
        "a_to_b": between, "bound": TOLERANCE * between, "fast": fast,
    }  # fmt: skip


def draw(diffusion: Diffusion, n: int, changes: dict[str, Any], seed: int, out: Path) -> np.ndarray:
    """Images [n, C, S, S] float16 in [0, 1] under `changes` of the configuration, from `out` where they are there.

    A folder is named by all that its images depend on, the weights included.
    """
    config = diffusion.config.model_copy(update=changes)
    varied = dataclasses.replace(diffusion, config=config)
    name = "-".join(str(changes[k]) for k in ("sampler", "sample_steps", "sample_dtype") if k in changes)
    folder = out / f"{name}-seed{seed}-{digest([_weights(diffusion), config.model_dump(mode='json'), seed])}"
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with progress(f"{name} seed {seed}", n) as advance:
        for first in range(0, n, CHUNK):
            count = min(CHUNK, n - first)
            path = folder / f"{first:06d}-{count}.npy"
            if not path.exists():
                labels = torch.arange(first, first + count) % max(1, len(diffusion.classes))
                images = varied.sample(labels, seed, first=first).half().numpy()
                atomic_write(path, lambda temporary, images=images: _save(temporary, images))  # type: ignore[misc]
            made.append(np.load(path, allow_pickle=False))
            advance(first + count, "")
    return np.concatenate(made)


@torch.inference_mode()
def pooled_features(network: SubNetwork, images: np.ndarray) -> np.ndarray:
    """Mean over the positions of the network's last map, [n, width] float64, of images [n, C, S, S] in [0, 1]."""
    device = network.mean.device
    made = []
    for part in np.array_split(images, max(1, len(images) // 32)):
        x = F.interpolate(torch.from_numpy(part).float().to(device), (SIZE, SIZE), mode="bilinear", antialias=True)
        made.append(network(x).mean((2, 3)).cpu().double().numpy())
    return np.concatenate(made)


def _save(path: Path, images: np.ndarray) -> None:
    with open(path, "wb") as handle:
        np.save(handle, images, allow_pickle=False)


def _weights(diffusion: Diffusion) -> str:
    return digest({k: v.cpu().double().abs().sum().item() for k, v in diffusion.model.state_dict().items()})
