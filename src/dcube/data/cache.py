"""The folder in which prepared images wait for the next command, and what tells that they are the same."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from dcube.data.records import ImageSet
from dcube.errors import InputError
from dcube.files import file_digest
from dcube.progress import progress

ABANDONED = 3600.0  # seconds after the last change of an unfinished store
TRIED = 20  # unreadable files that are tried again
THREADS = min(4, os.cpu_count() or 1)
MANY = 5000  # files whose reading is shown


def default_cache() -> Path:
    """$DCUBE_CACHE, else $XDG_CACHE_HOME/dcube, else ~/.cache/dcube."""
    if own := os.environ.get("DCUBE_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dcube"


def remove_abandoned(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left unfinished of a store, or of any in this folder: it can be many gigabytes."""
    for left in folder.glob(f".{name}.*.tmp"):
        if _runs(left.name.split(".")[-2]):
            continue
        try:
            changed = max(file.stat().st_mtime for file in (left, *left.iterdir()))
        except OSError:  # another process has just finished or removed it
            continue
        if time.time() - changed > ABANDONED:
            shutil.rmtree(left, ignore_errors=True)


def _runs(process: str) -> bool:
    """Whether a process of this number runs on this machine; False where that cannot be told."""
    if os.name != "posix" or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except PermissionError:  # another user's
        return True
    except OSError:
        return False
    return True


def contents(root: Path, names: Sequence[str]) -> list[str]:
    """A digest of every file in a folder, as it is now; why it cannot be read, where it cannot."""

    def of(name: str) -> str:
        try:
            return file_digest(root / name)
        except OSError as error:
            return f"unreadable: {error.strerror}"

    shown = progress("reading files", len(names)) if len(names) >= MANY else nullcontext(lambda done, info="": None)
    with ThreadPoolExecutor(THREADS) as pool, shown as advance:
        found = []
        for digest in pool.map(of, names):
            found.append(digest)
            advance(len(found))
    return found


def tell_readable(images: ImageSet, broken: Sequence[dict[str, str]], directory: Path) -> None:
    """A line on stderr where files that could not be read when a store was made can be read by now (the first of them
    are tried): a codec may have been installed, a disk be there again.
    """
    names = {row["path"] for row in broken[:TRIED]}
    readable = []
    for record in images.records if names else ():
        if record.path in names:
            try:
                images.read(record)
            except InputError:
                continue
            readable.append(record.path)
    if readable:
        print(
            f"Images that could not be read when these were prepared can be read now, such as {readable[0]}; to use"
            f" them, remove {directory} and begin in a new folder or with --restart.",
            file=sys.stderr,
        )
