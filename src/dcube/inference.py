"""Probabilities for pixels from outside the training set: files, arrays, and what about them looks unlike it."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

from dcube.classifier.model import Predictor
from dcube.data.dataset import resize
from dcube.data.decode import Normalisation, is_colour, read_image
from dcube.data.readers import Room, ahead
from dcube.errors import InputError
from dcube.progress import progress

CHUNK = 32  # images per forward
Item = TypeVar("Item")


def predict_raw(
    predictor: Predictor, items: Iterable[Item], read: Callable[[Item], np.ndarray]
) -> Iterator[np.ndarray]:
    """Probabilities [n, K] float64, chunk by chunk; read(item) gives raw pixels [H, W] or [H, W, 3] of any size and
    type, and is called by several threads."""
    normalisation = Normalisation.from_dict(predictor.metadata["normalisation"])
    room = Room()

    def prepare(item: Item) -> np.ndarray:
        with room.of(item):
            return normalisation.apply(read(item))

    return predict_chunks(predictor, ahead(items, prepare))


def predict_chunks(predictor: Predictor, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Probabilities [n, K] float64, chunk by chunk, for images [C, S, S] as the store holds them."""
    normalisation, images = Normalisation.from_dict(predictor.metadata["normalisation"]), iter(images)
    while held := list(islice(images, CHUNK)):
        yield predict_stored(predictor, normalisation.floats(np.stack(held)))


def predict_stored(predictor: Predictor, images: np.ndarray) -> np.ndarray:
    """Probabilities [n, K] float64 for images [n, C, S, S] in [0, 1] at the stored size."""
    device = next(predictor.model.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).to(device)
    small, large = predictor.sizes
    return predictor(resize(pixels, small), resize(pixels, large)).cpu().double().numpy()


def names_of(paths: Iterable[Any]) -> list[str]:
    """Paths as text. InputError for one path in place of a list, and for what is no path."""
    if isinstance(paths, str | bytes | os.PathLike) or getattr(paths, "ndim", 1) == 0:
        raise InputError("This takes a list of image files; put the one path into a list.")
    try:
        return [str(os.fsdecode(path)) for path in paths]
    except TypeError as error:
        raise InputError(f"This takes a list of paths of image files ({error}).") from error


def predict_files(predictor: Predictor, paths: Iterable[Any]) -> list[dict[str, Any]]:
    """A row per readable file: path, predicted, confidence, p_<class>, warning. paths: text or `Path`s.

    Unreadable files are named on stderr and left out; InputError where none is left of some.
    """
    paths = names_of(paths)
    if not paths:
        return []
    normalisation = Normalisation.from_dict(predictor.metadata["normalisation"])
    read: list[str] = []
    broken: list[str] = []
    notes: list[str] = []
    room = Room()

    def prepare(path: str) -> tuple[np.ndarray, str] | InputError:
        with room.of(path):
            try:
                raw = read_image(path)
            except InputError as error:
                return error
            stored = normalisation.apply(raw)
            return stored, unlike_training(raw, predictor.metadata, stored)

    def images() -> Iterator[np.ndarray]:
        with progress("prediction", len(paths)) as advance:
            for number, (path, found) in enumerate(zip(paths, ahead(paths, prepare), strict=True), 1):
                if isinstance(found, InputError):
                    broken.append(str(found))
                else:
                    read.append(path)
                    notes.append(found[1])
                    yield found[0]
                advance(number)

    probabilities = [row for chunk in predict_chunks(predictor, images()) for row in chunk]
    if not read:
        raise InputError(f"None of {len(paths)} images can be read, the first being {broken[0]}")
    for reason in broken:
        print(f"left out: {reason}", file=sys.stderr)  # stdout may be the table
    return [
        {"path": path, "predicted": predictor.classes[p.argmax()], "confidence": float(p.max())}
        | {f"p_{name}": float(v) for name, v in zip(predictor.classes, p, strict=True)}
        | {"warning": note}
        for path, p, note in zip(read, probabilities, notes, strict=True)
    ]


def training_look(
    images: np.ndarray, sides: Sequence[int] | None = None, deep: np.ndarray | None = None
) -> dict[str, list[float]]:
    """Ranges of brightness and contrast over training images [n, C, S, S] in [0, 1], and of all images where these are
    known of the longer `sides` of their files in pixels and of bits per value (`deep`: [N], more than 8); kept for
    `unlike_training`.
    """
    flat = images.reshape(len(images), -1)
    look = {"brightness": flat.mean(1), "contrast": flat.std(1)}
    ranges = {name: [float(v) for v in np.percentile(values, [0.5, 99.5])] for name, values in look.items()}
    if deep is not None:
        ranges["bits"] = [16.0 if deep.all() else 8.0, 16.0 if deep.any() else 8.0]
    return ranges | ({"side": [float(side) for side in sides]} if sides else {})


def unlike_training(raw: np.ndarray, metadata: dict[str, Any], stored: np.ndarray | None = None) -> str:
    """What about a raw image does not look like the training set, in words; empty where nothing does. `stored`: the
    same image [C, S, S] as the store would hold it, where that is known."""
    normalisation = Normalisation.from_dict(metadata["normalisation"])
    notes = []
    if normalisation.channels == 1 and raw.ndim == 3 and is_colour(raw):
        notes.append("a colour image, but training images were grey")
    look = dict(metadata.get("look", {}))
    if (8 if raw.dtype == np.uint8 else 16) not in look.pop("bits", (normalisation.bits,)):
        notes.append(f"{8 * raw.dtype.itemsize} bits per value, but training images had {normalisation.bits}")
    if max(raw.shape[:2]) < min(look.pop("side", (normalisation.size,))[0], normalisation.size) / 2:
        notes.append(f"only {raw.shape[1]} x {raw.shape[0]} pixels")
    floats = normalisation.floats(normalisation.apply(raw) if stored is None else stored)
    for name, (low, high) in look.items():
        value = float(floats.mean() if name == "brightness" else floats.std())
        margin = 0.25 * (high - low)
        if not low - margin <= value <= high + margin:
            notes.append(f"{name} {value:.2f} lies outside the training images' {low:.2f} .. {high:.2f}")
    return "; ".join(notes)


def refuse_deeper(raw: np.ndarray, bits: int, name: str) -> None:
    """InputError where a raw image has more than 8 bits per value and the training images had 8 (`bits`)."""
    if raw.dtype != np.uint8 and bits == 8:
        raise InputError(
            f"{name} has {8 * raw.dtype.itemsize} bits per value, but the training images had 8; convert the images as"
            " those were."
        )
