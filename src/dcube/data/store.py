"""Decoded pixels and their table in one folder, complete or absent, memory-mapped when used."""

import csv
import errno
import io
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np

from dcube.config import DataConfig
from dcube.data.cache import THREADS, contents, default_cache, remove_abandoned, tell_readable
from dcube.data.decode import Look, Normalisation, edges, is_colour, look, survey
from dcube.data.records import ImageSet, Record
from dcube.data.seen import flags, mark, marks_of, mask, written
from dcube.data.twins import joined_groups, twins_of
from dcube.errors import InputError
from dcube.files import digest, read_json, write_json, write_text

STORE_FILE = "store.json"
_TABLE_FILE, _PIXEL_FILE = "table.csv", "pixels.bin"
_FORMAT = 1  # raised when stored pixels change their meaning: older stores are then built again
_DECODER = 3  # raised when some files are read otherwise: a cached store of an older one is built again
_SURVEY = 256  # images that range and channels are chosen from
Progress = Callable[[int, int], None]


class Store:
    """A built store. `pixels`: memory map [N, C, S, S] uint8 or uint16; `labels`: [N] int64 into `classes`."""

    def __init__(self, directory: Path) -> None:
        """Read the table and map the pixels. Use `Store.open`, which explains what is wrong with a folder."""
        meta = read_json(directory / STORE_FILE)
        self.directory = directory
        self.key: str = meta["key"]
        self.decoder: int = meta.get("decoder", 1)
        self.name: str = meta["name"]
        self.classes: list[str] = meta["classes"]
        self.broken: list[dict[str, str]] = meta["broken"]
        self.normalisation = Normalisation.from_dict(meta["normalisation"])
        with open(directory / _TABLE_FILE, encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle))
        self.paths = [row["path"] for row in rows]
        self.given_splits: list[str | None] = [row["split"] or None for row in rows]
        index = {name: number for number, name in enumerate(self.classes)}
        self.labels = np.array([index[row["label"]] for row in rows], dtype=np.int64)
        self.pixels = _mapped(directory, self.normalisation, len(rows))
        self.sides: list[int] | None = meta.get("sides")  # percentiles 0.5 and 99.5 of the files; None: an older store
        self.marks = marks_of(meta["marks"]) if "marks" in meta else None  # [N] uint64, of what was read
        deep = meta.get("deep")  # more than 8 bits per value; None: an older store, which did not tell
        self.deep = None if deep is None else flags(deep, len(rows))  # [N] bool
        self.twins: list[list[int]] | None = meta.get("twins")  # None: made before they were looked for
        self.groups = joined_groups([row["group"] for row in rows], self.twins or [], self.given_splits)

    @classmethod
    def open(cls, directory: Path | str) -> Self:
        """Open a store; InputError where the folder holds none, or one of another version."""
        directory = Path(directory)
        if not (directory / STORE_FILE).is_file():
            raise InputError(f"There is no store in {directory}; make one with: dcube prepare DATA --out {directory}")
        try:
            if read_json(directory / STORE_FILE)["format"] != _FORMAT:
                raise InputError(f"The store in {directory} was made by another version; prepare it again.")
            return cls(directory)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"The store in {directory} is damaged ({error}); remove it and prepare it again."
            ) from error

    def floats(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Images as float32 [n, C, S, S] in [0, 1]; only these are read from the disk."""
        return self.normalisation.floats(self.pixels[np.asarray(indices, dtype=np.int64)])

    def as_images(self) -> ImageSet:
        """The store as an image set: the same table, and `read` gives its pixels on the files' scale."""
        table = zip(self.paths, self.labels, self.groups, self.given_splits, strict=True)
        records = tuple(Record(path, self.classes[label], group, split) for path, label, group, split in table)
        index = {path: number for number, path in enumerate(self.paths)}

        def read(record: Record) -> np.ndarray:
            planes = np.asarray(self.pixels[index[record.path]])
            if self.normalisation.bits == 16:  # back to the values of the files
                low, high = self.normalisation.low, self.normalisation.high
                planes = self.normalisation.floats(planes) * np.float32(high - low) + np.float32(low)
            return planes[0] if len(planes) == 1 else np.moveaxis(planes, 0, -1)

        return ImageSet(self.name, None, records, read, prepared=self.directory)


def store_key(images: ImageSet, config: DataConfig) -> str:
    """16 hex digits that change with the table, the bytes of any file, or a setting that changes pixels."""
    if images.prepared is not None:
        content: list[str] = [Store.open(images.prepared).key]
    elif images.root is None:
        content = [images.name]
    else:
        content = contents(images.root, [record.path for record in images.records])
    table = [[r.path, r.label, r.group, r.split] for r in images.records]
    settings = {name: getattr(config, name) for name in ("size", "channels", "aspect", "max_broken")}
    settings |= {"window": config.window} if config.window else {}
    return digest([_FORMAT, settings, table, content])


def cached_store(
    images: ImageSet, config: DataConfig, cache_dir: Path | None = None, progress: Progress | None = None
) -> Store:
    """The store of these images and settings: reused where it was built before, else built under `cache_dir`.

    Where the images are a prepared store already, that one is opened, and must agree with the settings.
    """
    if images.prepared is not None:
        return _prepared(images.prepared, config)
    key = store_key(images, config)
    directory = (cache_dir or default_cache()) / "stores" / key
    remove_abandoned(directory.parent)
    if (directory / STORE_FILE).is_file():
        store = Store.open(directory)
        if images.root is None or store.decoder == _DECODER:
            tell_readable(images, store.broken, directory)
            return store
        shutil.rmtree(directory)
    return _build(images, config, directory, key, progress)


def _prepared(directory: Path, config: DataConfig) -> Store:
    store = Store.open(directory)
    has, wants = store.normalisation, config
    if wants.window and (has.low, has.high) != edges(wants.window):
        raise InputError(f"The store {directory} was made with another data.window; prepare it again from the images.")
    if (has.size, has.aspect) != (wants.size, wants.aspect) or wants.channels not in ("auto", has.channels):
        raise InputError(
            f"The store {directory} holds {has.size} px, {has.aspect}, {has.channels} channel(s), but the settings ask"
            f" for {wants.size} px, {wants.aspect}, {wants.channels}; prepare it again from the images, or use --set"
            f" data.size={has.size} --set data.aspect={has.aspect} --set data.channels={has.channels}."
        )
    return store


def build_store(images: ImageSet, config: DataConfig, directory: Path | str, progress: Progress | None = None) -> Store:
    """Decode every image into a new store at `directory`. `progress(done, total)` is called per image.

    Images are streamed: memory does not grow with their number. Broken ones are left out and listed in
    `store.broken`; more than `config.max_broken` of them, or a class without any sound image, raise InputError.
    The folder is there completely or not at all.
    """
    return _build(images, config, Path(directory), store_key(images, config), progress)


def _build(images: ImageSet, config: DataConfig, directory: Path, key: str, progress: Progress | None) -> Store:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory} exists already; remove it or choose another place for the store.")
    work = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(directory.parent, directory.name)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        _fill(images, config, work, key, progress)
        return _publish(work, directory)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"No space is left on the device for the store in {directory.parent} ({_gigabytes(images, config)});"
                " free some, or name another place by DCUBE_CACHE."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(
                f"The store cannot be written to {directory.parent} ({error.strerror});"
                " name another place by DCUBE_CACHE."
            ) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fill(images: ImageSet, config: DataConfig, work: Path, key: str, progress: Progress | None) -> None:
    if shutil.disk_usage(work).free < len(images.records) * config.size**2:
        raise OSError(errno.ENOSPC, "not enough for the pixels alone")
    records = images.records
    asked = [i for i, record in enumerate(records) if record.split != "test"] or list(range(len(records)))
    chosen = {asked[i] for i in np.linspace(0, len(asked) - 1, min(_SURVEY, len(asked))).astype(int)}
    while True:
        looks = _looks(images, sorted(chosen))
        normalisation = survey(looks, config.size, config.channels, config.aspect, config.window)
        surprises, kept, broken, facts = _write_pixels(images, normalisation, config, work / _PIXEL_FILE, progress)
        if not surprises:
            break
        # colour or 16-bit images of a kind that the survey had not met: at most twice
        spread = np.linspace(0, len(surprises) - 1, min(_SURVEY, len(surprises))).astype(int)
        chosen |= {surprises[place] for place in spread}
    _check_broken(images, kept, broken, config.max_broken)
    if config.window and normalisation.bits == 8:
        raise InputError("data.window is for values of more than 8 bits, and these images have 8; leave it out.")
    rows = [records[i] for i in kept]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label", "group", "split"])
    table.writerows([r.path, r.label, r.group, r.split or ""] for r in rows)
    write_text(work / _TABLE_FILE, text.getvalue())
    twins = twins_of(_mapped(work, normalisation, len(rows)))
    write_json(work / STORE_FILE, {
        "format": _FORMAT, "decoder": _DECODER, "key": key, "name": images.name, "images": len(rows),
        "classes": images.classes,
        "normalisation": normalisation.to_dict(), "broken": broken, "twins": twins,
        "sides": np.percentile([side for side, _, _ in facts], [0.5, 99.5]).astype(int).tolist(),
        "marks": written([number for _, number, _ in facts]), "deep": mask(np.array([deep for *_, deep in facts])),
    })  # fmt: skip


def _looks(images: ImageSet, indices: list[int]) -> list[Look]:
    def one(index: int) -> Look | None:
        try:
            return look(images.read(images.records[index]))
        except InputError:  # reported when the pixels are written
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return [seen for seen in pool.map(one, indices) if seen is not None]


def _write_pixels(
    images: ImageSet, normalisation: Normalisation, config: DataConfig, path: Path, progress: Progress | None
) -> tuple[list[int], list[int], list[dict[str, str]], list[tuple[int, int, bool]]]:
    """Stream all images into one file. Returns (indices of images that do not fit the survey: after the first nothing
    more is written; kept, broken; longer side in pixels, mark and depth above 8 bits of every kept one).
    """
    may_widen = config.channels == "auto" and normalisation.channels == 1

    def convert(record: Record) -> tuple[np.ndarray, tuple[int, int, bool]] | str | None:
        try:
            raw = images.read(record)
        except InputError as error:
            return str(error).removeprefix(f"{images.root / record.path}: " if images.root else "")
        deep = raw.dtype != np.uint8
        if (deep and normalisation.bits == 8) or (may_widen and is_colour(raw)):
            return None
        return normalisation.apply(raw), (max(raw.shape[:2]), mark(raw), deep)

    surprises: list[int] = []
    kept: list[int] = []
    broken: list[dict[str, str]] = []
    facts: list[tuple[int, int, bool]] = []
    chunk = 16 * THREADS  # decoded images that may wait for their turn to be written
    with open(path, "wb") as handle, ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(images.records), chunk):
            part = images.records[start : start + chunk]
            for index, result in enumerate(pool.map(convert, part), start):
                if result is None:
                    surprises.append(index)
                elif isinstance(result, str):
                    broken.append({"path": images.records[index].path, "reason": result})
                elif not surprises:
                    handle.write(result[0].tobytes())
                    kept.append(index)
                    facts.append(result[1])
                if progress:
                    progress(index + 1, len(images.records))
        handle.flush()
        os.fsync(handle.fileno())
    return surprises, kept, broken, facts


def _check_broken(images: ImageSet, kept: list[int], broken: list[dict[str, str]], max_broken: float) -> None:
    total = len(images.records)
    if len(broken) > max_broken * total:
        few = "; ".join(f"{row['path']}: {row['reason'].rstrip('.')}" for row in broken[:3])
        raise InputError(
            f"{len(broken)} of {total} images cannot be read, more than the {max_broken:.0%} that are tolerated"
            f" (data.max_broken); repair or remove them. The first: {few}."
        )
    read = [images.records[i] for i in kept]
    if gone := sorted({record.split for record in images.records if record.split} - {record.split for record in read}):
        raise InputError(f"No image of the split {gone[0]} can be read; repair its files or leave the split out.")
    lost = sorted(set(images.classes) - {record.label for record in read})
    if lost:
        raise InputError(f"No image of the class '{lost[0]}' can be read; repair its files or remove the class.")


def _mapped(directory: Path, normalisation: Normalisation, count: int) -> np.ndarray:
    shape = count, normalisation.channels, normalisation.size, normalisation.size
    return np.memmap(directory / _PIXEL_FILE, normalisation.dtype, "r", shape=shape)


def _publish(work: Path, directory: Path) -> Store:
    try:
        os.replace(work, directory)
    except OSError:
        if not (directory / STORE_FILE).is_file():  # else another process was quicker with the same store
            raise
    return Store.open(directory)


def _gigabytes(images: ImageSet, config: DataConfig) -> str:
    per_pixel = 1 if config.channels == "auto" else config.channels
    return f"at least {len(images.records) * config.size**2 * per_pixel / 1e9:.1f} GB are needed"
