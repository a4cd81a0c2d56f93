"""Evaluation on another set of images than the run's own."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcube.classifier.model import Predictor
from dcube.data.decode import Normalisation
from dcube.data.manifest import MANIFEST, same_text
from dcube.data.readers import Room, ahead
from dcube.data.records import ImageSet, Record
from dcube.data.seen import CONTENT, mark, marks_of
from dcube.data.sources import open_images
from dcube.data.store import Store, store_key
from dcube.data.twins import joined_groups
from dcube.errors import InputError
from dcube.evaluation.intervals import evaluate_predictions
from dcube.files import digest, read_json, write_json
from dcube.inference import predict_chunks, refuse_deeper, unlike_training
from dcube.runs import Run
from dcube.tables import write_predictions
from dcube.training.state import load_metadata


def evaluate_external(run: Run, predictor: Predictor, data: str) -> dict[str, Any]:
    """Metrics on another set of images with the same class names; RUN/evaluation/external-NAME.json and .csv.

    InputError for images of the run's own, a class it never saw, too many unreadable images, or deeper pixels.
    """
    settings = run.settings()
    images = open_images(data, settings.seed, classes=None)
    own = _check_external(run, images, predictor, data)
    kept, marks, broken, warnings, probabilities = _answers(predictor, images, data, own)
    if len(broken) > settings.data.max_broken * len(images.records):
        raise InputError(f"{len(broken)} of {len(images.records)} images cannot be read, the first being {broken[0]}")
    known = [same_text(name) for name in predictor.classes]
    labels = np.array([known.index(record.label) for record in kept])
    twins = _twins(marks)
    groups = joined_groups([record.group for record in kept], twins, [None] * len(kept))
    if copies := sum(len(like) - 1 for like in twins):
        print(f"{copies} of {len(kept)} images are copies of others and count with them as one group", file=sys.stderr)
    metrics = {
        "split": "external", "data": data, "place": _place(data),
        **evaluate_predictions(
            probabilities, labels, groups, predictor.classes,
            bootstrap=settings.evaluation.bootstrap, level=settings.evaluation.level, seed=settings.seed,
        ),
        "copies": copies, "broken": broken, "warnings": warnings,
    }  # fmt: skip
    if _held_out(run, predictor) is None:
        sentence = f"whether {data} holds its own validation or test images is not known: its prepared ones are gone"
        print(f"{run.path}: {sentence}", file=sys.stderr)
    if warnings:
        print(f"{len(warnings)} of {len(kept)} images look unlike the training images; {warnings[0]}", file=sys.stderr)
    name = _free_name(run, data)
    write_predictions(
        run.evaluation / f"{name}.csv", [record.path for record in kept], labels, probabilities, predictor.classes
    )
    write_json(run.evaluation / f"{name}.json", metrics)
    return metrics


def _answers(
    predictor: Predictor, images: ImageSet, data: str, own: set[int]
) -> tuple[list[Record], list[int], list[str], list[str], np.ndarray]:
    """The readable images and their marks, what is wrong with the others, warnings, and the probabilities [n, K] of the
    readable ones.
    InputError where any has one of the marks `own`, and for deeper pixels than the training images had.
    """
    kept: list[Record] = []
    marks: list[int] = []
    broken: list[str] = []
    warnings: list[str] = []
    known: list[str] = []
    normalisation = Normalisation.from_dict(predictor.metadata["normalisation"])
    room = Room()

    def prepare(record: Record) -> tuple[np.ndarray, str, int] | InputError:
        with room.of(None if images.root is None else images.root / record.path):
            try:
                raw = images.read(record)
            except InputError as error:
                return error
            refuse_deeper(raw, normalisation.bits, f"{record.path} of {data}")
            if (number := mark(raw)) in own:
                known.append(record.path)
            pixels = normalisation.apply(raw)
            return pixels, unlike_training(raw, predictor.metadata, pixels), number

    def stored() -> Iterator[np.ndarray]:
        for record, found in zip(images.records, ahead(images.records, prepare), strict=True):
            if isinstance(found, InputError):
                broken.append(str(found))
            else:
                kept.append(record)
                marks.append(found[2])
                if found[1]:
                    warnings.append(f"{record.path}: {found[1]}")
                yield found[0]

    probabilities = np.concatenate(list(predict_chunks(predictor, stored())) or [np.zeros((0, len(predictor.classes)))])
    _refuse_known(known, images, data)
    return kept, marks, broken, warnings, probabilities


def _twins(marks: Sequence[int]) -> list[list[int]]:
    """Positions of equal images, each list two or more."""
    found: dict[int, list[int]] = {}
    for index, number in enumerate(marks):
        if number:
            found.setdefault(number, []).append(index)
    return [like for like in found.values() if len(like) > 1]


def _check_external(run: Run, images: ImageSet, predictor: Predictor, data: str) -> set[int]:
    """Marks of the images that may not be among them: what step 1 has seen, and what the run is judged by."""
    held = store_key(images, run.settings().data) if images.prepared is None else Store.open(images.prepared).key
    if held == run.store_key():
        raise InputError(f"{data} is the run's own data, training images included; use --split val or --split test.")
    if unknown := sorted(set(images.classes) - set(map(same_text, predictor.classes))):
        known = ", ".join(predictor.classes)
        raise InputError(f"{data} has the class '{unknown[0]}', which this run never saw; it knows {known}.")
    seen = load_metadata(run.diffusion / "model.safetensors").get("seen", {})
    own = set(marks_of(seen.get(CONTENT, "")).tolist())
    if (held_out := _held_out(run, predictor)) is not None:
        own |= set(held_out.tolist())
    if images.prepared is not None and (marks := Store.open(images.prepared).marks) is not None:
        pairs = zip(images.records, marks.tolist(), strict=True)  # of the files; here are prepared pixels
        _refuse_known([record.path for record, number in pairs if number and number in own], images, data)
    return own - {0}


def _held_out(run: Run, predictor: Predictor) -> NDArray[np.uint64] | None:
    """Marks of the run's validation and test images, which the classifier remembers; of an older version, of its
    prepared images, and None where these are gone.
    """
    if "held_out" in predictor.metadata:
        return marks_of(predictor.metadata["held_out"])
    with suppress(InputError):
        store = Store.open(run.store())
        return store.marks if store.key == run.store_key() else None
    return None


def _refuse_known(known: Sequence[str], images: ImageSet, data: str) -> None:
    if known:
        raise InputError(
            f"{len(known)} of {len(images.records)} images of {data} are the run's own, such as {min(known)}: figures"
            " on them would be too good; take them out, or use --split val or --split test for the run's own splits."
        )


def _free_name(run: Run, data: str) -> str:
    """`external_name`, and something to tell it from another set of that name where there is one."""
    name = external_name(data)
    file = run.evaluation / f"{name}.json"
    if file.is_file() and read_json(file).get("place", _place(data)) != _place(data):
        name += f"-{digest([_place(data)])[:6]}"
    return name


def _place(data: str) -> str:
    """Where a set of images lies, however it was named."""
    if data.startswith("phantom:"):
        return data
    path = Path(data).resolve()
    return str(path.parent if path.name.lower() == MANIFEST else path)


def external_name(data: str) -> str:
    """How the files about another set of images are called: after its folder, or its manifest."""
    if data.startswith("phantom:"):
        return "external-" + re.sub(r"[^\w=-]+", "-", data).strip("-")
    path = Path(_place(data))
    return f"external-{path.stem if path.suffix == '.csv' else path.name}"
