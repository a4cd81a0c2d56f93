"""Readers beside the network: linear probes of what is frozen, whose answers are joined with the network's."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dcube.config import ClassifierConfig, Experiment, FeaturesConfig
from dcube.data.dataset import ImageData
from dcube.diffusion.train import Diffusion
from dcube.evaluation.linear import fit_linear_probe
from dcube.features.covariance import LogCovariance, evened
from dcube.features.frozen import FrozenFeatures
from dcube.features.subnet import CHUNK, SubNetwork
from dcube.files import digest
from dcube.progress import progress
from dcube.training.order import drawn, key, numpy_rng
from dcube.training.state import load_weights, save_weights

IMAGES = 20_000  # training images that a probe is fitted on, at most
VALUES = 200_000_000  # and features of all of them: 0.8 GB
FLOOR = 1e-6  # of a probability whose logarithm is taken
SECOND, CNN, STEP1 = "second_reader", "cnn_covariances", "step1_covariances"


class Reader(nn.Module, ABC):
    """Log-probabilities [B, K] by a linear layer on features [B, d] of what stays as it came; fitted, never trained by
    gradients.

    Fine-tuned on few images, a CNN gives up some of what its layers knew; a regularised linear probe of these, fitted
    in seconds, is about as good and errs elsewhere. Several such answers are worth more than one, as those of two
    radiologists are (double reading).
    """

    weight: torch.Tensor
    bias: torch.Tensor
    widths: Sequence[int] = ()  # of the parts of the features that are to count alike; (): they come as they are

    def _begin(self, num_classes: int, width: int) -> None:
        self.register_buffer("weight", torch.zeros(num_classes, width))
        self.register_buffer("bias", torch.zeros(num_classes))
        self.requires_grad_(False).train()

    def train(self, mode: bool = True) -> "Reader":
        """Frozen: always in evaluation mode."""
        return super().train(False)

    @abstractmethod
    def features(self, images: torch.Tensor, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """[B, d] of images [B, C, S, S] in [0, 1] at the CNN's size and all of step 1's maps of them."""

    def forward(self, images: torch.Tensor, maps: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        return F.linear(self.features(images, maps), self.weight, self.bias).log_softmax(-1)


class SecondReader(Reader):
    """On the flattened map of one stride of the CNN as it came."""

    def __init__(self, config: ClassifierConfig, num_classes: int, weights: str | None = None) -> None:
        super().__init__()
        self.stride = config.second_reader
        self.subnet = SubNetwork(config.cnn, weights or config.cnn_weights, config.cnn_size).train(False)
        self.subnet.end_at(self.stride)
        with torch.inference_mode():
            width = self.features(torch.zeros(1, 3, config.cnn_size, config.cnn_size)).shape[1]
        self._begin(num_classes, width)

    def features(self, images: torch.Tensor, maps: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        return self.subnet.flat_level(images, self.stride)


class CnnCovariances(Reader):
    """On the log-covariances of all maps of the CNN as it came, from stride 4 on."""

    def __init__(self, config: ClassifierConfig, num_classes: int, weights: str | None = None) -> None:
        super().__init__()
        self.subnet = SubNetwork(config.cnn, weights or config.cnn_weights, config.cnn_size)
        self.covariance = LogCovariance(self.subnet.level_channels)
        self.widths = self.covariance.widths
        self._begin(num_classes, sum(self.widths))

    def features(self, images: torch.Tensor, maps: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        found: torch.Tensor = self.covariance(self.subnet.levels(images))
        return found


class Step1Covariances(Reader):
    """On the log-covariances of all of step 1's maps, at the earliest timestep of prediction."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.covariance = LogCovariance(channels)
        self.widths = self.covariance.widths
        self._begin(num_classes, sum(self.widths))

    def features(self, images: torch.Tensor, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        found: torch.Tensor = self.covariance(maps)
        return found


def build_readers(
    config: ClassifierConfig, num_classes: int, channels: Sequence[int], weights: str | None = None
) -> nn.ModuleDict:
    """The readers that the settings ask for, by name, not yet fitted. `channels`: of all of step 1's maps."""
    readers: dict[str, nn.Module] = {}
    if config.second_reader:
        readers[SECOND] = SecondReader(config, num_classes, weights)
    if "cnn" in config.covariance_readers:
        readers[CNN] = CnnCovariances(config, num_classes, weights)
    if "step1" in config.covariance_readers:
        readers[STEP1] = Step1Covariances(channels, num_classes)
    return nn.ModuleDict(readers)


class WholeMaps:
    """All of step 1's maps of an image, as large as they are, at the earliest timestep of prediction."""

    def __init__(self, diffusion: Diffusion, features: FeaturesConfig, dtype: torch.dtype = torch.float32) -> None:
        size, blocks = diffusion.config.image_size, list(range(len(diffusion.model.blocks)))
        self.frozen = FrozenFeatures(diffusion, blocks, features.input, size, dtype)
        self.timestep = min(features.prediction_timesteps)

    @property
    def channels(self) -> list[int]:
        """Of each map."""
        return [shape[0] for shape in self.frozen.shapes]

    def __call__(self, small: torch.Tensor) -> list[torch.Tensor]:
        """small: [B, C, S, S] in [0, 1] at the diffusion model's size."""
        return self.frozen(small, torch.full((len(small),), self.timestep, device=small.device))


def whole_maps(
    diffusion: Diffusion, config: ClassifierConfig, features: FeaturesConfig, dtype: torch.dtype
) -> WholeMaps | None:
    """What the readers need of step 1; None where none of them reads it."""
    return WholeMaps(diffusion, features, dtype) if "step1" in config.covariance_readers else None


@torch.inference_mode()
def read(
    readers: nn.ModuleDict, data: ImageData, rows: np.ndarray, config: ClassifierConfig, whole: WholeMaps | None
) -> dict[str, np.ndarray]:
    """Probabilities [n, K] float64 by each reader alone for rows of a store."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in readers}
    for at in range(0, len(rows), CHUNK) if parts else ():
        images, maps = _seen(data, rows[at : at + CHUNK], config, whole, _device(readers))
        for name, reader in readers.items():
            parts[name].append(reader(images, maps).exp().cpu().double().numpy())
    return {name: np.concatenate(found) for name, found in parts.items()}


def joined(first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """Probabilities [B, K] of several readers as one: the normalised geometric mean (a logarithmic opinion pool).

    first: probabilities [B, K]; others: log-probabilities [B, K].
    """
    if not others:
        return first
    logarithms = [first.clamp(min=FLOOR).log(), *(other.clamp(min=math.log(FLOOR)) for other in others)]
    return (sum(logarithms[1:], logarithms[0]) / len(logarithms)).softmax(-1)


def make_readers(
    data: ImageData, experiment: Experiment, directory: Path, diffusion: Diffusion, dtype: torch.dtype = torch.float32
) -> tuple[nn.ModuleDict, dict[str, dict[str, Any]]]:
    """The readers that the settings ask for, fitted on the training split and each left in DIRECTORY/NAME.safetensors,
    or read from there; and what each file says of the fit: "images", "seconds", and "inside", the macro-F1 over folds
    of the training split (None where a class has one group only). `dtype`: of the frozen diffusion model.
    """
    config, told = experiment.classifier, {}
    whole = whole_maps(diffusion, config, experiment.features, dtype)
    torch.manual_seed(key(experiment.seed, "reader", "weights"))
    readers = build_readers(config, len(data.classes), whole.channels if whole else ()).to(diffusion.device)
    (directory / "reader.safetensors").unlink(missing_ok=True)  # its name when there was one
    for name, reader in readers.items():
        assert isinstance(reader, Reader)
        rows = fitted_rows(reader, data, experiment.seed)
        of: list[Any] = [name, config.cnn, config.cnn_weights, config.cnn_size, config.second_reader, experiment.seed]
        if name == STEP1 and whole is not None:
            of += [whole.frozen.name(), whole.timestep]
        file, inputs = directory / f"{name}.safetensors", digest([*of, data.store.key, rows.tolist()])
        if file.is_file():
            tensors, about = load_weights(file)
            if about["inputs"] == inputs:
                reader.load_state_dict(tensors)
                told[name] = about
                continue
        begin = time.monotonic()
        inside = fit_reader(reader, data, rows, config, whole if name == STEP1 else None, experiment.seed)
        about = {"inputs": inputs, "images": len(rows), "inside": None if math.isnan(inside) else inside}
        told[name] = about | {"seconds": time.monotonic() - begin}
        directory.mkdir(parents=True, exist_ok=True)
        save_weights(file, reader, told[name])
    return readers, told


def fitted_rows(reader: Reader, data: ImageData, seed: int) -> np.ndarray:
    """Training images that a reader is fitted on, in random order; of every class some."""
    shuffled = numpy_rng(seed, "reader").permutation(data.indices("train"))
    return drawn(shuffled, data.labels[shuffled], min(IMAGES, max(1, VALUES // reader.weight.shape[1])))


@torch.inference_mode()
def fit_reader(
    reader: Reader, data: ImageData, rows: np.ndarray, config: ClassifierConfig, whole: WholeMaps | None, seed: int
) -> float:
    """Fit the probe on rows of the store; returns its macro-F1 over folds inside them."""
    features = reader_features(reader, data, rows, config, whole)
    scale = evened(features, reader.widths)
    features *= scale
    groups = np.array(data.groups)[rows]
    layer, inside = fit_linear_probe(features, data.labels[rows], groups, classes=len(data.classes), seed=seed)
    reader.weight.copy_(torch.from_numpy(layer.weight * scale))
    reader.bias.copy_(torch.from_numpy(layer.bias))
    return inside


@torch.inference_mode()
def reader_features(
    reader: Reader, data: ImageData, rows: np.ndarray, config: ClassifierConfig, whole: WholeMaps | None
) -> np.ndarray:
    """What a reader sees of rows of the store: [n, d] float32."""
    device, parts = reader.weight.device, []
    with progress("reader", len(rows)) as advance:
        for at in range(0, len(rows), CHUNK):
            seen = _seen(data, rows[at : at + CHUNK], config, whole, device)
            parts.append(reader.features(*seen).cpu().float().numpy())
            advance(min(at + CHUNK, len(rows)), "")
    return np.concatenate(parts)


def _seen(
    data: ImageData, rows: np.ndarray, config: ClassifierConfig, whole: WholeMaps | None, device: torch.device
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    images = data.images(rows, config.cnn_size).to(device)
    return images, whole(data.images(rows, whole.frozen.diffusion.config.image_size).to(device)) if whole else []


def _device(readers: nn.ModuleDict) -> torch.device:
    return next(buffer for reader in readers.values() for buffer in reader.buffers()).device
