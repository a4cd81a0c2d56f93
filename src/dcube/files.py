"""Files are complete or absent: write beside, flush to disk, rename."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcube.errors import InputError


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` fill a file beside `path`, then move it into place in one step.

    The temporary keeps the suffix of `path` (some writers choose the format by it) and is removed
    when anything fails, so that nothing half-written stays under a final name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "r+b") as handle:  # Windows flushes only what may be written
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what `atomic_write` left in a folder when its process was killed; nobody else may be writing there."""
    for left_over in Path(folder).glob(".*.tmp*"):
        left_over.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """InputError where a file or folder could not be made there; nothing is written."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK) or (place != path.absolute() and not place.is_dir()):
        raise InputError(f"{path} cannot be written: {place} is not writable; choose another place.")


def check_file_writable(path: Path) -> None:
    """InputError where `atomic_write` could not put a file: a folder, or a place where it or its folder is not
    writable; nothing is written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file.")
    check_writable(path)
    folder = path.absolute().parent
    if folder.is_dir() and not os.access(folder, os.W_OK):  # the file is first written beside its place
        raise InputError(f"{path} cannot be written: {folder} is not writable; choose another place.")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically. NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def digest(value: Any) -> str:
    """A short, stable name (16 hex digits) for any JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short name (16 hex digits) for a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]
