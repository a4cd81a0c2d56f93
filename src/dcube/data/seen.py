"""Which images a training has seen, kept with its weights: whoever begins with them must not be tested on those."""

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

# key of a store -> its rows as a bit mask, hexadecimal; CONTENT -> marks of the images, whatever store they are in
Seen: TypeAlias = dict[str, str]
CONTENT = "content"


def mask(flags: np.ndarray) -> str:
    """[n] bool as hexadecimal digits, four rows each."""
    return np.packbits(flags).tobytes().hex()


def flags(text: str, count: int) -> np.ndarray:
    """The inverse of `mask`, [count] bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


def mark(raw: np.ndarray) -> int:
    """Of an image as it was read: equal for equal pixels; 0 for an image of one value, which says nothing."""
    if raw.min() == raw.max():
        return 0
    found = hashlib.blake2b(f"{raw.dtype} {raw.shape}".encode(), digest_size=8)
    found.update(np.ascontiguousarray(raw).data)
    return int.from_bytes(found.digest(), "big")


def written(marks: NDArray[np.uint64] | Sequence[int]) -> str:
    """Marks as hexadecimal digits, 16 each."""
    return np.array(marks, dtype=">u8").tobytes().hex()


def marks_of(text: str) -> NDArray[np.uint64]:
    """The inverse of `written`."""
    return np.frombuffer(bytes.fromhex(text), dtype=">u8").astype(np.uint64)


def union(one: Seen, other: Seen) -> Seen:
    """What either has seen."""
    both = {key: int(one[key], 16) | int(other[key], 16) for key in (one.keys() & other.keys()) - {CONTENT}}
    found = {**one, **other, **{key: f"{value:0{len(one[key])}x}" for key, value in both.items()}}
    if CONTENT in found:
        found[CONTENT] = written(np.union1d(*(marks_of(seen.get(CONTENT, "")) for seen in (one, other))))
    return found
