"""Who of a store is in which split, and in which fold of a group cross-validation."""

import numpy as np

from dcube.config import DataConfig
from dcube.data.split import assign_folds, assign_splits
from dcube.data.store import Store
from dcube.data.twins import joined_groups, remarks
from dcube.errors import InputError


def splits_of(store: Store, config: DataConfig, seed: int) -> np.ndarray:
    """The split of every image, [N] str: the one the data bring, or one made by group. InputError where a class has too
    few groups.
    """
    try:
        return assign_splits(
            [store.classes[y] for y in store.labels], store.groups, store.given_splits,
            val_fraction=config.val_fraction, test_fraction=config.test_fraction, seed=seed,
        )  # fmt: skip
    except InputError as error:
        raise InputError(_with_copies(error, store)) from error


def fold_splits(store: Store, folds: int, seed: int, val_fraction: float = 0.0) -> list[np.ndarray]:
    """Splits [N] of each fold: "test" is its held-out part, "val" is cut from the rest by group, "train" what is left.

    A test split that the data bring stays out of it ("" in every fold), so that it can still be looked at once.
    InputError where a class has too few groups.
    """
    pool = np.array([i for i, split in enumerate(store.given_splits) if split != "test"])
    labels, groups = [store.classes[store.labels[i]] for i in pool], fold_groups(store, pool)
    try:
        fold_of = assign_folds(labels, groups, folds, seed)
    except InputError as error:
        raise InputError(_with_copies(error, store)) from error
    result = []
    for fold in range(folds):
        splits = np.full(len(store.labels), "", dtype="<U5")
        rest = pool[fold_of != fold]
        given: list[str | None] = ["train"] * len(rest)
        splits[rest] = assign_splits(
            [store.classes[store.labels[i]] for i in rest], fold_groups(store, rest), given,
            val_fraction=val_fraction, test_fraction=0, seed=seed,
        )  # fmt: skip
        splits[pool[fold_of == fold]] = "test"
        result.append(splits)
    return result


def fold_groups(store: Store, rows: np.ndarray) -> list[str]:
    """The groups of some rows [n]; copies among them are of one group whatever splits the data had put them into."""
    place = {row: number for number, row in enumerate(rows.tolist())}
    twins = [[place[index] for index in like if index in place] for like in store.twins or []]
    return joined_groups([store.groups[row] for row in place], twins, [None] * len(place))


def _with_copies(error: InputError, store: Store) -> str:
    """Why there may be fewer groups than a table says."""
    return f"{error} {remarks(store)[0]} Copies count as one group." if store.twins else str(error)
