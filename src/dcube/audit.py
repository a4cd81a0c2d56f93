"""What is to be known of a set of images before anything is learnt from it: copies, look-alikes of different groups,
and how far the classes can be told apart by what is no picture of a disease.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from dcube.config import Experiment
from dcube.data.decode import header_of
from dcube.data.folds import fold_groups, fold_splits
from dcube.data.records import ImageSet
from dcube.data.store import Store
from dcube.data.twins import remarks
from dcube.errors import InputError
from dcube.evaluation.floors import floors, shrink
from dcube.evaluation.intervals import evaluate_predictions
from dcube.evaluation.linear import spread, tuned_layer
from dcube.evaluation.metrics import Floats, Ints

SIDE = 24  # pixels of a thumbnail's side
ALIKE = 0.99  # correlation of thumbnails: within a patient slices pass it, between patients none of thousands did
MOST = 20_000  # images that are compared with one another: a draw, where there are more
CHUNK = 1024
PART = 64  # images at the stored size that are held at once
SHOWN = 20  # pairs that are written down
FOLDS = 5
ASKED = 5000  # images that shortcuts are sought in, whole groups; a draw, where there are more
RING, RING_SIDE = 4, 64  # width of the border that is looked at, of images reduced to so many pixels
TREES = 200
SHORTCUTS = {  # what the classes are told apart by -> what it would mean
    "files": "they come from different sources, and a model may learn those",
    "bytes": "noise, sharpness or compression differ between them, perhaps with the scanner, or what they show does",
    "border": "a model may learn what surrounds the body",
}


def audit(images: ImageSet, store: Store, settings: Experiment) -> dict[str, Any]:
    """{"images", "groups", "classes": {class: {"images", "groups"}}, "splits", "ignored", "broken", "remarks",
    "look_alikes": [{"first", "second", "correlation"}], "shortcuts": {name: metrics}}, as JSON.

    A shortcut is a model of out-of-fold predictions, by group, on all images that are not in a given test split:
    "files" sees each file's width, height and colour, "bytes" its bytes per pixel, "border" the outermost pixels, and
    the floors are those of a run. Of more than ASKED images a draw of whole groups is asked about. Empty where there
    are too few groups.
    """
    count = Counter(store.classes[y] for y in store.labels)
    members: dict[str, set[str]] = {name: set() for name in sorted(count)}
    for group, label in zip(store.groups, store.labels, strict=True):
        members[store.classes[label]].add(group)
    pairs = look_alikes(store, settings.seed)
    return {
        "images": len(store.labels), "groups": len(set(store.groups)),
        "classes": {name: {"images": count[name], "groups": len(groups)} for name, groups in members.items()},
        "splits": dict(Counter(split or "none" for split in store.given_splits)), "ignored": images.ignored,
        "broken": store.broken, "remarks": all_remarks(store, pairs),
        "look_alikes": [
            {"first": store.paths[i], "second": store.paths[j], "correlation": round(r, 4)}
            for i, j, r in pairs[:SHOWN]
        ],
        "shortcuts": shortcuts(images, store, settings),
    }  # fmt: skip


def all_remarks(store: Store, pairs: Sequence[tuple[int, int, float]]) -> list[str]:
    """What a person must know before a model is trained, a sentence each: copies, and look-alikes (`pairs`)."""
    found = remarks(store)
    deep = 0 if store.deep is None else int(store.deep.sum())
    if 0 < deep < len(store.paths):
        found.append(
            f"{deep} of {len(store.paths)} images have more than 8 bits per value and the others 8: each kind is"
            " brought to one range in its own way, and where classes differ in it a model may learn that."
        )
    if pairs:
        alike = len({index for i, j, _ in pairs for index in (i, j)})
        first, second, _ = pairs[0]
        found.append(
            f"{alike} images are as like one of another group as usually only images of one patient are (the first:"
            f" {store.paths[first]} and {store.paths[second]}); if they are of one patient, say so by patient_id in a"
            " manifest, or training and test will share patients."
        )
    return found


def look_alikes(store: Store, seed: int = 0) -> list[tuple[int, int, float]]:
    """Pairs (i, j, correlation of their thumbnails) of images of different groups, most alike first: for every image
    the one most like it, where that is beyond ALIKE. Of more than MOST images a random draw is looked at; none of
    phantoms, which are all of one make.
    """
    if store.name.startswith("phantom:"):
        return []
    count = len(store.labels)
    rows = np.sort(np.random.default_rng(seed).permutation(count)[:MOST])
    thumbnails = _thumbnails(store, rows)
    groups = np.unique(np.array(store.groups)[rows], return_inverse=True)[1]
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        likeness = thumbnails[part] @ thumbnails.T
        likeness[groups[part, None] == groups] = -1
        best = likeness.argmax(1)
        for i, j, r in zip(range(start, len(rows)), best.tolist(), likeness.max(1).tolist(), strict=False):
            if r > ALIKE:
                found[int(rows[min(i, j)]), int(rows[max(i, j)])] = r
    return sorted(((i, j, r) for (i, j), r in found.items()), key=lambda pair: (-pair[2], pair[:2]))


def _thumbnails(store: Store, rows: np.ndarray) -> NDArray[np.float32]:
    """[n, SIDE^2], each of mean 0 and length 1; of an image of one value only, 0."""
    flat = _shrunk(store, rows, SIDE).mean(1).reshape(-1, SIDE**2)
    flat -= flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-6)


def shortcuts(images: ImageSet, store: Store, settings: Experiment) -> dict[str, Any]:
    """{name: metrics with intervals} of the models of `audit`."""
    if len(store.classes) < 2:
        return {}
    try:
        folds = fold_splits(store, FOLDS, settings.seed)
    except InputError:  # a class with fewer groups than folds
        return {}
    drawn = _drawn(store, settings.seed)
    facts, small = _file_facts(images, store, drawn), _shrunk(store, drawn, RING_SIDE)
    y, groups = store.labels[drawn], np.array(fold_groups(store, drawn))
    ring = np.ones((RING_SIDE, RING_SIDE), bool)
    ring[RING:-RING, RING:-RING] = False
    border = small[:, :, ring].reshape(len(small), -1).astype(np.float64)
    rows, parts = [], []
    for splits in folds:
        train, asked = np.flatnonzero(splits[drawn] == "train"), np.flatnonzero(splits[drawn] == "test")
        if not len(asked) or len(np.unique(y[train])) < 2:  # large groups: too little of it was drawn
            continue
        labels, classes = y[train], len(store.classes)
        found = floors(small[train], labels, groups[train], small[asked], classes=classes, seed=settings.seed)
        if facts is not None:
            for name, columns in (("files", slice(3)), ("bytes", slice(3, 4))):
                seen, new = facts[train, columns], facts[asked, columns]
                found[name] = _forest(seen, labels, new, classes, settings.seed)
        scale = border[train].std() + 1e-8
        seen, new = border[train] / scale, border[asked] / scale
        found["border"] = tuned_layer(seen, labels, groups[train], classes=classes, seed=settings.seed)(new)
        rows.append(asked)
        parts.append(found)
    if not parts:
        return {}
    index, how = np.concatenate(rows), settings.evaluation
    return {
        name: evaluate_predictions(
            np.concatenate([part[name] for part in parts]), y[index], groups[index], store.classes,
            bootstrap=how.bootstrap, level=how.level, seed=settings.seed,
        )
        for name in parts[0]
    }  # fmt: skip


def _drawn(store: Store, seed: int) -> np.ndarray:
    """Rows of whole groups in random order, of each class in turn, until ASKED images are reached; none of a given test
    split.
    """
    groups = np.array(store.groups)
    free = np.array([split != "test" for split in store.given_splits])
    if free.sum() <= ASKED:
        return np.flatnonzero(free)
    rng = np.random.default_rng(seed)
    of_class = [rng.permutation(np.unique(groups[free & (store.labels == k)])) for k in range(len(store.classes))]
    size = Counter(groups[free].tolist())
    kept: dict[str, int] = {}
    for turn in range(max(map(len, of_class))):
        for names in of_class:
            if turn < len(names) and sum(kept.values()) < ASKED:
                kept[str(names[turn])] = size[str(names[turn])]
    return np.flatnonzero(free & np.isin(groups, list(kept)))


def _shrunk(store: Store, rows: np.ndarray, side: int) -> NDArray[np.float32]:
    """[n, C, side, side], a part of the images at a time."""
    parts = [shrink(store.floats(rows[start : start + PART]), side) for start in range(0, len(rows), PART)]
    return np.concatenate(parts)


def _file_facts(images: ImageSet, store: Store, rows: np.ndarray) -> Floats | None:
    """[n, 4] for rows of a store: log width and height, colour, log bytes per pixel; None of a set without files."""
    root = images.root
    if root is None:
        return None

    def facts(path: Path) -> list[float]:
        width, height, colour = header_of(path)
        pixels = max(1, width * height)
        return [np.log(max(1, width)), np.log(max(1, height)), float(colour), np.log(path.stat().st_size / pixels)]

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(facts, (root / store.paths[row] for row in rows))))


def _forest(train: Floats, labels: Ints, asked: Floats, classes: int, seed: int) -> Floats:
    """Trees: sizes of files are few, and in no order that a line could follow."""
    model = RandomForestClassifier(TREES, class_weight="balanced", min_samples_leaf=5, random_state=seed, n_jobs=1)
    model.fit(train, labels)
    return spread(model.predict_proba(asked), model.classes_, classes)


def audit_text(found: dict[str, Any]) -> str:
    """The findings as lines: what was counted, then what must be known, then the table of shortcuts."""
    lines = [f"{found['images']} images, {found['groups']} groups, {found['ignored']} other files ignored"]
    lines += [f"  {name}: {part['images']} images, {part['groups']} groups" for name, part in found["classes"].items()]
    lines += [f"left out: {row['path']}: {row['reason']}" for row in found["broken"]]
    lines += found["remarks"]
    for name, meaning in SHORTCUTS.items():
        if name in found["shortcuts"] and _above_guessing(found, name):
            told = f"By the {name} alone (see below) the classes can be told apart better than by guessing"
            lines.append(f"{told}: {meaning}.")
    if found["shortcuts"]:
        lines += ["", f"{'told apart by':16} macro-F1, out of {FOLDS} folds by group"]
        lines += [f"{name:16} {_interval(part['macro_f1'])}" for name, part in _sorted(found["shortcuts"])]
    else:
        lines.append("Too few groups or classes to ask what the classes could be told apart by.")
    return "\n".join(lines)


def _above_guessing(found: dict[str, Any], name: str) -> bool:
    low = found["shortcuts"][name]["macro_f1"]["low"]
    return low is not None and low > 1 / len(found["classes"])


def _sorted(shortcuts: dict[str, Any]) -> Sequence[tuple[str, Any]]:
    return sorted(shortcuts.items(), key=lambda item: -(item[1]["macro_f1"]["value"] or 0))


def _interval(figure: dict[str, Any]) -> str:
    value, low, high = ("n/a" if figure[name] is None else f"{figure[name]:.3f}" for name in ("value", "low", "high"))
    return f"{value} ({low} .. {high})"
