"""From what a person names (a folder, a manifest, `phantom:`) to a table of images.

A new source is one function under `@source`: it returns an ImageSet, or None for a name that is not its own.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dcube.data.decode import SUFFIXES, read_image
from dcube.data.dicom import groups_of, is_dicom
from dcube.data.folders import check_name, class_records, flat_splits, hidden, list_folder, split_folders
from dcube.data.manifest import MANIFEST, SPLIT_NAMES, manifest_in, read_rows, record_of, tell_patients
from dcube.data.records import ImageSet, Record
from dcube.data.split import check_splits
from dcube.errors import InputError

TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".ods")
Source = Callable[[str, int], ImageSet | None]
SOURCES: list[Source] = []  # asked in this order

def source(function: Source) -> Source:
    """Register a source."""
    SOURCES.append(function)
    return function


def open_images(data: str, seed: int = 0, classes: int | None = 2) -> ImageSet:
    """The table behind `data`: a class folder, a manifest, a prepared store or `phantom:`; no pixel is decoded.

    `seed` is for sets that the program makes and whose name states none; `classes`: how many are needed to train on the
    set, None where nothing is trained. Raises InputError for whatever is wrong with the table: nothing there, too few
    classes, missing files, a group in two splits, a label that train never sees.
    """
    for make in SOURCES:
        images = make(str(data), seed)
        if images is not None:
            return images if classes is None else _check_table(images, classes)
    raise InputError(
        f"There is no folder or file '{data}'; give a folder with one sub-folder per class, or a manifest."
    )


def _check_table(images: ImageSet, classes: int) -> ImageSet:
    if len(images.classes) < classes:
        raise InputError(
            f"{images.name} holds images of one class only ('{images.classes[0]}'); a classifier needs at least two."
        )
    alike: dict[str, str] = {}
    for name in images.classes:
        if (other := alike.setdefault(name.casefold(), name)) != name:
            raise InputError(
                f"The classes '{other}' and '{name}' of {images.name} differ in large and small letters only; give them"
                " one name."
            )
    given = [record.split for record in images.records]
    missing = sum(split is None for split in given)
    if missing == len(given):
        return images
    if missing:
        raise InputError(
            f"{images.name} gives a split to some images, but none to {missing} of {len(given)};"
            " fill in every split, or leave all of them out and one is made."
        )
    labels, groups = [r.label for r in images.records], [r.group for r in images.records]
    check_splits(labels, groups, np.array(given), [r.path for r in images.records])
    return images


@source
def phantom(data: str, seed: int) -> ImageSet | None:
    """`phantom:`, the embedded synthetic CT set."""
    if not data.startswith("phantom:"):
        return None
    from dcube.data.phantom import open_phantom

    return open_phantom(data, seed)


@source
def prepared_store(data: str, seed: int) -> ImageSet | None:
    """A folder that `dcube prepare` wrote."""
    from dcube.data.store import STORE_FILE, Store

    if not (Path(data) / STORE_FILE).is_file():
        return None
    return Store.open(Path(data)).as_images()


@source
def manifest(data: str, seed: int) -> ImageSet | None:
    """A CSV file, or a folder with `manifest.csv`: path,label[,split][,group_id][,patient_id]."""
    path = manifest_of(data)
    if path is None:
        return None
    if path.suffix.lower() != ".csv":
        raise InputError(f"{path} is neither a folder nor a manifest (.csv); give the folder that holds the images.")
    return from_table(path, read_rows(path))


def manifest_of(data: str) -> Path | None:
    """The file that `data` names, itself or as a folder with `manifest.csv`; None where there is none."""
    path = Path(data)
    if path.is_dir():
        return manifest_in(path)
    return path if path.is_file() else None


def from_table(path: Path, rows: Sequence[tuple[int, dict[str, str]]]) -> ImageSet:
    """The images that the rows of a manifest (`read_rows`) name. InputError for a row at fault or a missing file."""
    records: dict[str, Record] = {}
    for number, row in rows:
        record = record_of(row, f"{path}, line {number}")
        known = records.setdefault(record.path, record)
        if known != record:
            fields = [f for f in ("label", "group", "split") if getattr(known, f) != getattr(record, f)]
            raise InputError(f"{path}, line {number}: {record.path} stood before with another {' and '.join(fields)}.")
    root = path.parent
    missing = [name for name in records if not (root / name).is_file()]
    if missing:
        raise InputError(
            f"{path} names {len(missing)} missing {'file' if len(missing) == 1 else 'files'}:"
            f" {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}; paths are taken from {root}."
        )
    tell_patients(path, [row for _, row in rows])
    return from_files(str(path), root, list(records.values()))


@source
def class_folders(data: str, seed: int) -> ImageSet | None:
    """A folder with one sub-folder per class, or <split>/<class>/; every image is a group of its own."""
    root = Path(data)
    if not root.is_dir():
        return None
    folders, loose, ignored = list_folder(root)
    records: list[Record] = []
    if flat := flat_splits(folders):
        raise InputError(
            f"{root} holds {', '.join(folder.name for folder in flat)} without class folders; sort the images of each"
            " into one sub-folder per class, or name them in a manifest.csv (path,label,split)."
        )
    if splits := split_folders(root, folders):
        for folder in splits:
            classes, images, skipped = list_folder(folder)
            found, more = class_records(root, classes, SPLIT_NAMES[folder.name.lower()])
            records += found
            ignored += more + skipped + len(images)
    else:
        records, more = class_records(root, folders, None)
        ignored += more
    refuse_mixture(root, records)
    tell_tables(root)
    if not records and loose:
        raise InputError(f"{root} holds images but no class folders; sort them into one sub-folder per class.")
    if not records:
        raise InputError(f"{root} holds no images ({', '.join(s[1:] for s in SUFFIXES)}) in class folders.")
    return from_files(str(root), root, records, ignored + len(loose))


def tell_tables(root: Path) -> None:
    """Say which tables beside class folders are not read."""
    tables = (entry.name for entry in root.iterdir() if entry.suffix.lower() in TABLES)
    if held := sorted(name for name in tables if not hidden(name)):
        names = f"{', '.join(held)} {'is' if len(held) == 1 else 'are'}"
        print(f"{root}: {names} not read; a table of images is called {MANIFEST} (path,label,patient_id)")


def refuse_mixture(root: Path, records: Sequence[Record]) -> None:
    """InputError where a folder holds DICOM files and other images."""
    kinds = {is_dicom(root / record.path): record.path for record in records}
    if len(kinds) > 1:
        raise InputError(
            f"{root} holds DICOM files and other images side by side ({kinds[True]}, {kinds[False]}), perhaps the same"
            " ones twice; take one kind away, or name in a manifest.csv what you mean."
        )


def from_files(name: str, root: Path, records: list[Record], ignored: int = 0) -> ImageSet:
    """Image files below `root` as a set; InputError for a name that no table could hold."""
    for record in records:
        check_name(record.path)
    records = _by_patient(name, root, records)

    def read(record: Record) -> np.ndarray:
        return read_image(root / record.path)

    return ImageSet(name, root, tuple(records), read, ignored)


def _by_patient(name: str, root: Path, records: list[Record]) -> list[Record]:
    """DICOM files that nobody has grouped are grouped by their patients, or studies (`groups_of`)."""
    open_ones = [i for i, record in enumerate(records) if record.group == record.path and is_dicom(root / record.path)]
    groups = groups_of(name, [root / records[i].path for i in open_ones])
    for index, group in zip(open_ones, groups, strict=True):
        records[index] = replace(records[index], group=group or records[index].path)
    return records


def describe(images: ImageSet) -> str:
    """One line for a person: images, groups, classes, and what was ignored."""
    count = Counter(record.label for record in images.records)
    classes = ", ".join(f"{name} {count[name]}" for name in images.classes)
    groups = len({record.group for record in images.records})
    ignored = f"; {images.ignored} other files ignored" if images.ignored else ""
    return f"{len(images.records)} images in {groups} groups: {classes}{ignored}"
