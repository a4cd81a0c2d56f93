"""Which images a training has seen, kept with its weights: whoever begins with them must not be tested on those."""

import hashlib
from typing import TypeAlias

import numpy as np

# key of a store -> its rows as a bit mask, hexadecimal; CONTENT -> marks of the images, whatever store they are in
Seen: TypeAlias = dict[str, str]
CONTENT, DIGITS = "content", 16


def mask(flags: np.ndarray) -> str:
    """[n] bool as hexadecimal digits, four rows each."""
    return np.packbits(flags).tobytes().hex()


def flags(text: str, count: int) -> np.ndarray:
    """The inverse of `mask`, [count] bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


def union(one: Seen, other: Seen) -> Seen:
    """What either has seen."""
    both = {key: int(one[key], 16) | int(other[key], 16) for key in (one.keys() & other.keys()) - {CONTENT}}
    content = {CONTENT: "".join(sorted(marks(one) | marks(other)))} if CONTENT in one or CONTENT in other else {}
    return {**one, **other, **{key: f"{value:0{len(one[key])}x}" for key, value in both.items()}, **content}


def marks(seen: Seen) -> set[str]:
    """The marks of the images that were seen."""
    text = seen.get(CONTENT, "")
    return {text[at : at + DIGITS] for at in range(0, len(text), DIGITS)}


def mark(pixels: np.ndarray) -> str:
    """Of an image as a store holds it: equal for equal pixels, and "" for an image of one value, which says nothing."""
    if pixels.min() == pixels.max():
        return ""
    return hashlib.blake2b(pixels.tobytes(), digest_size=DIGITS // 2).hexdigest()
