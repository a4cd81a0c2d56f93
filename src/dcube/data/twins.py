"""Images that stand in a set more than once: whatever its table says, they belong together."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dcube.data.store import Store


def twins_of(pixels: Iterable[np.ndarray]) -> list[list[int]]:
    """Positions of images with equal pixels, each list two or more; images of one value only say nothing and are left
    out. pixels: N images of any one shape, looked at one by one.
    """
    found: dict[bytes, list[int]] = {}
    for index, image in enumerate(pixels):
        if image.min() != image.max():
            found.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), []).append(index)
    return [like for like in found.values() if len(like) > 1]


def joined_groups(
    groups: Sequence[str], twins: Sequence[Sequence[int]], splits: Sequence[str | None]
) -> list[str]:
    """The groups [N], those of twins made one; what the data put into different splits stays apart: a split that is
    given is kept, and told (`remarks`).
    """
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for like in twins:
        firsts: dict[str | None, str] = {}  # split -> group of the first of them there
        for index in like:
            first = firsts.setdefault(splits[index], groups[index])
            parent[root(groups[index])] = root(first)
    return [root(group) for group in groups]


def remarks(store: "Store") -> list[str]:
    """What a person should know of them, a sentence each: that there are some, that they lie in different splits of the
    table, or carry different labels.
    """
    twins = twins_of(store.pixels) if store.twins is None else store.twins
    paths, splits, labels = store.paths, store.given_splits, store.labels.tolist()

    def example(like: Sequence[int]) -> str:
        return f"the first: {paths[like[0]]} and {paths[like[1]]}"

    found = []
    if twins:
        copies = sum(len(like) - 1 for like in twins)
        found.append(f"{copies} images are copies of others ({example(twins[0])}).")
    if across := [like for like in twins if len({splits[i] for i in like}) > 1]:
        found.append(
            f"{len(across)} images stand in several splits of the table ({example(_differing(across[0], splits))}): the"
            " figures are too good; put copies into one split, or remove them."
        )
    if torn := [like for like in twins if len({labels[i] for i in like}) > 1]:
        found.append(
            f"{len(torn)} images stand with different labels ({example(_differing(torn[0], labels))}); correct them."
        )
    return found


def _differing(like: Sequence[int], values: Sequence[Any]) -> list[int]:
    return [like[0], next(i for i in like if values[i] != values[like[0]])]
