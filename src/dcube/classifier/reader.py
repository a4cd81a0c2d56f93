"""The second reader: a linear probe of the pretrained CNN as it came, whose answer is joined with the network's."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dcube.config import ClassifierConfig, Experiment
from dcube.data.dataset import ImageData
from dcube.evaluation.linear import fit_linear_probe
from dcube.features.subnet import CHUNK, SubNetwork, level_features
from dcube.files import digest
from dcube.training.order import key, numpy_rng
from dcube.training.state import load_weights, save_weights

IMAGES = 20_000  # training images that the probe is fitted on, at most
FLOOR = 1e-6  # of a probability whose logarithm is taken


class SecondReader(nn.Module):
    """Log-probabilities [B, K] of images [B, C, S, S] in [0, 1]: a linear layer on the flattened map of one stride.

    Fine-tuned on few images, a CNN gives up some of what its middle layers knew; a regularised linear probe of these,
    fitted in seconds, is about as good and errs elsewhere. Two such answers are worth more than either, as two
    radiologists are (double reading). Nothing in it is trained by gradients.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, config: ClassifierConfig, num_classes: int, weights: str | None = None) -> None:
        super().__init__()
        self.stride = config.second_reader
        self.subnet = SubNetwork(config.cnn, weights or config.cnn_weights, config.cnn_size)
        self.subnet.end_at(self.stride)
        self.requires_grad_(False).train()
        with torch.inference_mode():
            width = self.features(torch.zeros(1, 3, config.cnn_size, config.cnn_size)).shape[1]
        self.register_buffer("weight", torch.zeros(num_classes, width))
        self.register_buffer("bias", torch.zeros(num_classes))

    def train(self, mode: bool = True) -> "SecondReader":
        """Frozen: always in evaluation mode."""
        return super().train(False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """[B, d]."""
        return self.subnet.flat_level(images, self.stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.linear(self.features(images), self.weight, self.bias).log_softmax(-1)


@torch.inference_mode()
def reader_rows(reader: SecondReader, data: ImageData, rows: np.ndarray, size: int) -> np.ndarray:
    """Probabilities [n, K] float64 of the reader alone for rows of a store."""
    device = reader.weight.device
    chunks = (data.images(rows[at : at + CHUNK], size).to(device) for at in range(0, len(rows), CHUNK))
    return np.concatenate([reader(images).exp().cpu().double().numpy() for images in chunks])


def joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Probabilities [B, K] of two readers as one: the normalised geometric mean (a logarithmic opinion pool).

    first: probabilities [B, K]; second: log-probabilities [B, K].
    """
    return ((first.clamp(min=FLOOR).log() + second.clamp(min=float(np.log(FLOOR)))) / 2).softmax(-1)


def make_reader(
    data: ImageData, experiment: Experiment, directory: Path, device: torch.device | str = "cpu"
) -> tuple[SecondReader, dict[str, Any]]:
    """The reader, fitted on the training split and left in `directory`/reader.safetensors, or read from there; and what
    that file says of the fit: "images", "seconds", and "inside", the macro-F1 over folds of the training split (None
    where a class has one group only).
    """
    config, file = experiment.classifier, directory / "reader.safetensors"
    rows = numpy_rng(experiment.seed, "reader").permutation(data.indices("train"))[:IMAGES]
    of = [config.cnn, config.cnn_weights, config.cnn_size, config.second_reader, experiment.seed]
    inputs = digest([*of, data.store.key, rows.tolist()])
    if file.is_file():
        tensors, about = load_weights(file)
        if about["inputs"] == inputs:
            reader = SecondReader(config, len(data.classes), weights="none")
            reader.load_state_dict(tensors)
            return reader, about
    begin = time.monotonic()
    torch.manual_seed(key(experiment.seed, "reader", "weights"))
    reader = SecondReader(config, len(data.classes)).to(device)
    inside = fit_reader(reader, data, rows, config.cnn_size, experiment.seed)
    about = {"inputs": inputs, "images": len(rows), "inside": None if math.isnan(inside) else inside}
    about["seconds"] = time.monotonic() - begin
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(file, reader, about)
    return reader, about


def fit_reader(reader: SecondReader, data: ImageData, rows: np.ndarray, size: int, seed: int) -> float:
    """Fit the probe on rows of the store; returns its macro-F1 over folds inside them."""
    maps = level_features(reader.subnet, data, rows, size, reader.stride)
    labels, groups = data.labels[rows], np.array(data.groups)[rows]
    layer, inside = fit_linear_probe(maps, labels, groups, classes=len(data.classes), seed=seed)
    reader.weight.copy_(torch.from_numpy(layer.weight))
    reader.bias.copy_(torch.from_numpy(layer.bias))
    return inside
