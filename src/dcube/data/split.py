"""Who is in train, val and test, and in which fold: whole groups, every class everywhere."""

from collections.abc import Sequence

import numpy as np

from dcube.data.records import SPLITS
from dcube.errors import InputError

_ATTEMPTS = 20  # random orders that are tried; the most even one is taken
_DRAWS, _DRAWN = 200, 200_000  # draws of a share of the groups at most, and groups looked at in all of them
_EVEN = 0.01  # deviation of a class's share in a part at which the search ends early


def assign_splits(
    labels: Sequence[str],
    groups: Sequence[str],
    given: Sequence[str | None],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> np.ndarray:
    """One of "train", "val", "test" per image, [N] str.

    A given split is kept. With none, all three are made by group, stratified by class; each class then needs as
    many groups as there are parts. Where train is given but val or test is not, the part that lacks is cut from
    train in the same way, and a class with a single group stays in train. A fraction is a share of the images
    that are divided. Raises InputError where a class has too few groups or a given split is faulty.
    """
    label_array, fractions = np.asarray(labels), {"val": val_fraction, "test": test_fraction}
    splits = np.array([split or "" for split in given], dtype="<U5")
    if (splits == "").any() and (splits != "").any():
        raise InputError("Some images have a split and some have none; give one to every image, or to none.")
    made = bool((splits == "").all())
    splits[splits == ""] = "train"
    if not made:
        check_splits(labels, groups, splits)
    absent = [name for name, share in fractions.items() if share > 0 and not (splits == name).any()]
    if absent:
        shares = [1 - sum(fractions[name] for name in absent), *(fractions[name] for name in absent)]
        pool = np.flatnonzero(splits == "train")
        parts = _deal(label_array[pool], np.asarray(groups)[pool], np.array(shares), seed, need_all=made)
        splits[pool] = np.array(["train", *absent], dtype="<U5")[parts]
    return splits


def check_groups(groups: Sequence[str], splits: np.ndarray, paths: Sequence[str] | None = None) -> None:
    """Raise InputError for a group in two splits [N] str; it names an image of each, where `paths` [N] are given."""
    names = splits.tolist()
    home: dict[str, int] = {}
    for index, (group, name) in enumerate(zip(groups, names, strict=True)):
        first = home.setdefault(group, index)
        if names[first] != name:
            example = f" (such as {paths[first]} and {paths[index]})" if paths is not None else ""
            raise InputError(
                f"The group '{group}' is in two splits, {names[first]} and {name}{example}: the result would be too"
                " good; put all images of a group into one split."
            )


def check_splits(
    labels: Sequence[str], groups: Sequence[str], splits: np.ndarray, paths: Sequence[str] | None = None
) -> None:
    """Raise InputError for a group in two splits (an image of each is named where `paths` [N] are given), an empty
    train, or a label that train never sees.
    """
    names, label_array = np.asarray(splits), np.asarray(labels)
    unknown = sorted(set(names.tolist()) - set(SPLITS))
    if unknown:
        raise InputError(f"'{unknown[0]}' is not a split; use train, val or test.")
    check_groups(groups, names, paths)
    seen = set(label_array[names == "train"].tolist())
    if not seen:
        raise InputError("No image is in the split train; a model cannot be trained.")
    for name in ("val", "test"):
        strange = sorted(set(label_array[names == name].tolist()) - seen)
        if strange:
            raise InputError(
                f"The split {name} holds the label '{strange[0]}', which train never sees;"
                " correct the label, or put a group of that class into train."
            )
    if len(seen) < 2:
        raise InputError(f"The split train holds images of one class only ('{seen.pop()}'); at least two are needed.")


def assign_folds(labels: Sequence[str], groups: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each image, [N] int64 in 0 .. folds-1: groups whole, every class in every fold.

    Raises InputError where a class has fewer groups than there are folds.
    """
    if folds < 2:
        raise InputError(f"--folds {folds} makes no sense; use at least 2.")
    shares = np.full(folds, 1 / folds)
    return _deal(np.asarray(labels), np.asarray(groups), shares, seed, need_all=True)


def keep_share(labels: Sequence[str], groups: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Which images stay when about `share` (0 .. 1, both excluded) of them is kept, [N] bool: whole groups, a random
    draw of them, of each class in proportion and at least one. InputError for another share.

    Of many draws the one counts whose share is nearest in images and in groups alike: a share of the images that is one
    patient with many is no share of the patients.
    """
    if not 0 < share < 1:
        raise InputError(f"A share of {share:g} of the training images makes no sense; give one above 0 and below 1.")
    counts, group_index = _counts(np.asarray(labels), np.asarray(groups))
    wholes = counts.sum(0), (counts > 0).sum(0)  # images and groups of every class
    rng = np.random.default_rng([seed, 0x5B117])
    best, chosen = np.inf, np.zeros(len(counts), bool)
    for _ in range(max(5, min(_DRAWS, _DRAWN // len(counts)))):
        kept = _draw_once(counts, share, rng)
        held = counts[kept].sum(0), (counts[kept] > 0).sum(0)
        uneven = max(float(np.abs(part / whole - share).max()) for part, whole in zip(held, wholes, strict=True))
        if uneven < best:
            best, chosen = uneven, kept
    found: np.ndarray = chosen[group_index]
    return found


def _draw_once(counts: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Groups [G] bool in random order as long as no class has more than its share; first one for every class."""
    kept, held, most = np.zeros(len(counts), bool), np.zeros(counts.shape[1]), share * counts.sum(0) + 0.5
    order = rng.permutation(len(counts))
    for label in np.argsort((counts > 0).sum(0), kind="stable"):  # the rarest class has the least choice
        if held[label] == 0:
            first = order[counts[order, label] > 0][0]
            kept[first], held = True, held + counts[first]
    for group in order:
        if not kept[group] and not (held + counts[group] > most)[counts[group] > 0].any():
            kept[group], held = True, held + counts[group]
    return kept


def _counts(labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images per group and class [G, K], and the number of every image's group [N]."""
    classes, label_index = np.unique(labels, return_inverse=True)
    names, group_index = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (group_index, label_index), 1)
    return counts, group_index


def _deal(labels: np.ndarray, groups: np.ndarray, shares: np.ndarray, seed: int, *, need_all: bool) -> np.ndarray:
    """Deal whole groups into parts of the given shares, each class in proportion. [N] int64.

    Written here because scikit-learn's StratifiedGroupKFold deals equal shares only, and may leave a class out
    of a part that could have had it.
    """
    classes = np.unique(labels)
    counts, group_index = _counts(labels, groups)
    per_class = (counts > 0).sum(0)
    if need_all and per_class.min() < len(shares):
        few = int(per_class.argmin())
        raise InputError(
            f"The class '{classes[few]}' has {per_class[few]} group(s) of images, but {len(shares)} are needed to have"
            " some in every part; add data, use fewer parts, or give a split of your own."
        )
    rng = np.random.default_rng([seed, 0x5B117])
    best: tuple[float, float] | None = None
    for _ in range(_ATTEMPTS):
        parts = _deal_once(counts, shares, rng)
        held = np.stack([counts[parts == part].sum(0) for part in range(len(shares))])  # [parts, classes]
        untrained, lacking = int((held[0] == 0).sum()), int((held == 0).sum())
        uneven = float(np.abs(held / counts.sum(0) - shares[:, None]).max())
        score = (1000.0 * untrained + lacking, uneven)
        if best is None or score < best:
            best, chosen = score, parts
        if best < (0, _EVEN):
            break
    assert best is not None
    if need_all and best[0] > 0:
        raise InputError(
            "No split puts every class into every part while groups stay whole (groups hold several classes);"
            " give a split of your own."
        )
    return chosen[group_index]


def _deal_once(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random attempt: a group of every class for every part first, then each group to where it lacks most."""
    total = counts.sum(0)
    parts = np.full(len(counts), -1)
    held = np.zeros((len(shares), len(total)))

    def put(group: int, part: int) -> None:
        parts[group] = part
        held[part] += counts[group]

    order = rng.permutation(len(counts))
    size = counts.sum(1)
    for label in np.argsort((counts > 0).sum(0), kind="stable"):  # the rarest class has the least choice
        for part in range(len(shares)):
            free = order[(parts[order] < 0) & (counts[order, label] > 0)]
            if held[part, label] == 0 and len(free):
                put(free[0], part)
    for group in sorted((g for g in order if parts[g] < 0), key=lambda g: -size[g]):
        weight = counts[group] / total
        lack = (shares[:, None] * total - held) / (shares[:, None] * total)  # relative, 1: nothing yet
        put(group, int((lack @ weight).argmax()))
    return parts
