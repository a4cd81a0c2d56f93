"""Where an answer comes from: parts of the image are hidden, and what is said then is compared.

Occlusion (Zeiler and Fergus, ECCV 2014) asks nothing but answers, so it holds for all that gives them: diffusion model,
CNN and readers together.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from dcube.classifier.model import Predictor
from dcube.data.decode import Normalisation, read_image
from dcube.errors import InputError
from dcube.files import read_json, write_json
from dcube.inference import CHUNK, names_of, predict_stored, unlike_training
from dcube.progress import progress
from dcube.samples import save
from dcube.training.order import numpy_rng

RECORD = "explanations.json"
STEM = 150  # bytes of a file's name that its picture has
GRID = 14  # cells of an image's side; what is hidden at once is two cells wide
SMALLEST = 3  # cells of an image's side
COARSE = 8  # pixels of an image's side that remain of what is hidden: no edge and no black square that is news itself
TENTH, DRAWS = 0.1, 8  # of the cells, hidden at once as a check; random choices it is compared with
FULL, OPACITY = 0.1, 0.6  # a drop of the probability that is shown in full colour at the least, and how opaque that is
RED, BLUE = np.array([220.0, 30, 30]), np.array([40.0, 80, 230])
Ask = Callable[[np.ndarray], np.ndarray]  # images [n, C, S, S] float32 in [0, 1] -> probabilities [n, K]


@dataclass(frozen=True)
class Explanation:
    """Of one image and one class.

    drop: [g, g], how much the probability of the class falls when what covers a cell is hidden, on the mean (below 0:
    it rises). without_best: the probability that remains when the tenth of the cells with the largest drops is hidden
    at once; without_random: the same for a random tenth, mean of DRAWS draws. A map that means something has the first
    well below the second.
    """

    label: int
    probabilities: np.ndarray
    drop: np.ndarray
    without_best: float
    without_random: float


def explain(ask: Ask, image: np.ndarray, label: int | None = None, grid: int = GRID, seed: int = 0) -> Explanation:
    """Hide every window of 2 x 2 cells in turn. image: [C, S, S] float32 in [0, 1]; label: None for the class that is
    predicted; seed: of the random tenths; grid: SMALLEST or more, for with 2 one window hides all.
    """
    whole = ask(image[None])[0]
    asked, hidden = int(whole.argmax()) if label is None else label, blurred(image)
    corners = [(row, column) for row in range(grid - 1) for column in range(grid - 1)]
    drop, covered = np.zeros((grid, grid)), np.zeros((grid, grid))
    for start in range(0, len(corners), CHUNK):
        masks = np.zeros((len(corners[start : start + CHUNK]), grid, grid), bool)
        for mask, (row, column) in zip(masks, corners[start : start + CHUNK], strict=True):
            mask[row : row + 2, column : column + 2] = True
        found = _without(ask, image, hidden, masks)[:, asked]
        drop += np.einsum("n,nij->ij", whole[asked] - found, masks.astype(np.float64))
        covered += masks.sum(0)
    drop /= covered
    tenth, cells = max(1, round(TENTH * grid**2)), grid**2
    orders = [np.argsort(-drop, axis=None, kind="stable")]
    orders += [numpy_rng(seed, "explanation", draw).permutation(cells) for draw in range(DRAWS)]
    tenths = np.zeros((len(orders), cells), bool)
    for mask, order in zip(tenths, orders, strict=True):
        mask[order[:tenth]] = True
    best, *random = _without(ask, image, hidden, tenths.reshape(-1, grid, grid))[:, asked]
    return Explanation(asked, whole, drop, float(best), float(np.mean(random)))


def blurred(image: np.ndarray) -> np.ndarray:
    """[C, S, S], what is left of an image in COARSE x COARSE pixels, enlarged."""
    coarse = functional.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(image))[None], COARSE)
    size = image.shape[-2:]
    return functional.interpolate(coarse, size, mode="bilinear", align_corners=False)[0].numpy()  # type: ignore[no-any-return]


def _without(ask: Ask, image: np.ndarray, hidden: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Probabilities [n, K] where the cells of each mask [n, g, g] are hidden; n: at most CHUNK."""
    edges = np.linspace(0, image.shape[-1], masks.shape[-1] + 1).round().astype(int)
    cell = np.repeat(np.arange(masks.shape[-1]), np.diff(edges))  # of every pixel
    return ask(np.where(masks[:, cell][:, :, cell][:, None], hidden, image).astype(np.float32))


def overlay(image: np.ndarray, drop: np.ndarray) -> np.ndarray:
    """[S, 2 S, 3] uint8: the image, and beside it the image coloured, red where hiding lowers the probability of the
    class and blue where it raises it. image: [C, S, S] in [0, 1]; drop: [g, g].
    """
    pixels = 255 * np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0).astype(np.float64)
    smooth = functional.interpolate(torch.from_numpy(drop)[None, None], image.shape[1:], mode="bilinear")[0, 0].numpy()
    strength = np.clip(np.abs(smooth) / max(FULL, np.abs(drop).max()), 0, 1)[:, :, None] * OPACITY
    colour = np.where(smooth[:, :, None] > 0, RED, BLUE)
    both = np.concatenate([pixels, (1 - strength) * pixels + strength * colour], axis=1)
    return both.round().astype(np.uint8)


def write_explanations(
    predictor: Predictor, paths: Iterable[Any], out: Path, class_name: str | None = None, grid: int = GRID,
    seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """A picture per image file, OUT/0001-NAME.png (see `overlay`), and OUT/explanations.json; returns its rows: path,
    picture, class, probability, predicted, without_best, without_random, drop (see `Explanation`), warning (where the
    image looks unlike training). Files that cannot be read are named and left out; earlier explanations in OUT make
    way.

    InputError for an unknown class, a grid that images of this size do not have, where no file is given or can be read,
    and where OUT holds anything else.
    """
    paths = names_of(paths)
    if not paths:
        raise InputError("There is no image to explain; give one file at least.")
    if class_name is not None and class_name not in predictor.classes:
        raise InputError(f"There is no class '{class_name}'; this run knows {', '.join(predictor.classes)}.")
    label = None if class_name is None else predictor.classes.index(class_name)
    normalisation = Normalisation.from_dict(predictor.metadata["normalisation"])
    if not SMALLEST <= grid <= normalisation.size:
        side = normalisation.size
        raise InputError(f"--grid {grid} must lie in {SMALLEST} .. {side}, the pixels of an image's side.")
    _check_folder(out)
    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    with progress("explanations", len(paths)) as advance, _record(out / RECORD, rows) as written:
        for number, path in enumerate(paths, 1):
            try:
                raw = read_image(path)
                stored = normalisation.apply(raw)
            except InputError as error:
                broken.append(str(error))
                continue
            if not rows:
                _remove_earlier(out)
            written()
            image = normalisation.floats(stored)
            found = explain(lambda images: predict_stored(predictor, images), image, label, grid, seed)
            picture = f"{number:04d}-{Path(path).stem.encode()[:STEM].decode(errors='ignore')}.png"
            save(out / picture, overlay(image, found.drop))
            warning = unlike_training(raw, predictor.metadata, stored)
            if warning:
                print(f"{path}: {warning}", file=sys.stderr)
            rows.append({
                "path": path, "picture": picture, "class": predictor.classes[found.label],
                "probability": float(found.probabilities[found.label]),
                "predicted": predictor.classes[int(found.probabilities.argmax())],
                "without_best": found.without_best, "without_random": found.without_random,
                "drop": found.drop.round(6).tolist(), "warning": warning,
            })  # fmt: skip
            advance(number, "")
    if not rows:
        raise InputError(f"None of {len(paths)} images can be read, the first being {broken[0]}")
    for reason in broken:
        print(f"left out: {reason}", file=sys.stderr)
    return rows


@contextmanager
def _record(file: Path, rows: list[dict[str, Any]]) -> Iterator[Callable[[], None]]:
    """Inside, what it gives keeps `rows` in the file, before the first one and then as they grow by a tenth: each time
    all are written. At the end, whatever ends it, all are there.
    """
    due = 0

    def written() -> None:
        nonlocal due
        if len(rows) >= due:
            write_json(file, rows)
            due = len(rows) + 1 + len(rows) // 10

    try:
        yield written
    finally:
        if due:
            write_json(file, rows)


def _remove_earlier(out: Path) -> None:
    """The pictures of an earlier record, which would be taken for those of the new one."""
    for row in read_json(out / RECORD) if (out / RECORD).is_file() else ():
        (out / Path(row["picture"]).name).unlink(missing_ok=True)


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; explanations need a folder.")
    if out.is_dir() and not (out / RECORD).is_file() and any(path.name[0] != "." for path in out.iterdir()):
        raise InputError(f"{out} holds other files; give a new or empty folder as --out.")

