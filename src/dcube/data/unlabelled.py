"""Sets for a training that needs no labels: the same as for one that does, and images that have none."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dcube.data.dataset import ImageData
from dcube.data.folders import flat_splits, list_folder
from dcube.data.manifest import SPLIT_NAMES, read_rows
from dcube.data.records import ImageSet, Record
from dcube.data.sources import from_files, from_table, manifest_of, open_images, refuse_mixture
from dcube.data.split import check_groups
from dcube.data.store import STORE_FILE, Store
from dcube.errors import InputError

UNLABELLED = "(no labels)"
LEFT_OUT = ""  # in no split


def open_unlabelled(data: str, seed: int = 0) -> ImageSet:
    """The table behind `data`: what `open_images` opens, a folder of images without folders of images, or a manifest
    without the column label. The latter two are of one class, UNLABELLED.

    Raises InputError as `open_images` does, for a column that may have been meant for the label, and for images beside
    a single folder of images.
    """
    root, table = Path(data), manifest_of(data)
    if table is not None and table.suffix.lower() == ".csv":
        rows = read_rows(table, ("path",))
        if "label" not in rows[0][1]:
            if near := [*({"class", "y"} & rows[0][1].keys()), *difflib.get_close_matches("label", rows[0][1])]:
                raise InputError(f"{table} has no column 'label' but '{near[0]}'; rename it, or leave it out.")
            return from_table(table, [(number, row | {"label": UNLABELLED}) for number, row in rows])
    elif table is None and root.is_dir() and not (root / STORE_FILE).is_file():
        folders, images, others = list_folder(root)
        full = [folder for folder in folders if any(list_folder(folder)[:2])]
        if images and len(full) == 1:
            raise InputError(
                f"{root} holds images and beside them the folder {full[0].name}; take one of the two away, or name in a"
                " manifest.csv (path) what you mean."
            )
        if images and not full:
            records = [Record(image.name, UNLABELLED, image.name, None) for image in images]
            refuse_mixture(root, records)
            return from_files(data, root, records, others)
        if flat := flat_splits(folders):
            held = [(list_folder(folder)[1], SPLIT_NAMES[folder.name.lower()]) for folder in flat]
            paths = [(image.relative_to(root).as_posix(), split) for inside, split in held for image in inside]
            records = [Record(path, UNLABELLED, path, split) for path, split in paths]
            refuse_mixture(root, records)
            return from_files(data, root, records, others + len(images))
    return open_images(data, seed, classes=1)


def is_unlabelled(store: Store) -> bool:
    """Whether it is of images without labels."""
    return store.classes == [UNLABELLED]


def unlabelled_splits(store: Store) -> np.ndarray:
    """[N] str: all is for training but what the table puts elsewhere. InputError for a group in two splits, and where
    nothing is left to train on.
    """
    splits = np.array([split or "train" for split in store.given_splits])
    check_groups(store.groups, splits, store.paths)
    if not (splits == "train").any():
        raise InputError("A set without labels has no image in the split train; leave it out.")
    return splits


def without_held_out(names: Sequence[str], parts: Sequence[ImageData]) -> list[ImageData]:
    """The same sets, in which no image is for training whose group has one that is for validation or test in another:
    such rows are in no split, and their number is said. Images are known by what was read: one that was written anew in
    another way is not. InputError for a prepared set of an older version, which does not tell.
    """
    found = []
    for name, part in zip(names, parts, strict=True):
        if part.store.marks is None and len(parts) > 1:
            raise InputError(
                f"{name} was prepared by an older version, and its images cannot be known again in another set; prepare"
                " it anew."
            )
    for name, part in zip(names, parts, strict=True):
        elsewhere = held_out([other for other in parts if other is not part])
        groups, known = np.array(part.groups), np.zeros(len(part.splits), bool)
        if (marks := part.store.marks) is not None:
            known = np.isin(groups, groups[np.isin(marks, elsewhere)]) & (part.splits == "train")
        if known.any():
            print(f"{name}: {known.sum()} images are left out, for they or their groups are held out of another set")
        found.append(ImageData(part.store, np.where(known, LEFT_OUT, part.splits)))
    return found


def held_out(parts: Sequence[ImageData]) -> np.ndarray:
    """Marks of the images of several sets that are not for training: validation, test, and what folds leave closed."""
    marks = [part.store.marks[part.splits != "train"] for part in parts if part.store.marks is not None]
    found = np.concatenate(marks) if marks else np.zeros(0, np.uint64)
    return np.setdiff1d(found, np.uint64(0))
