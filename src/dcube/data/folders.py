"""What lies in a folder: class folders, images, and what is neither."""

import os
from pathlib import Path

from dcube.data.decode import SUFFIXES
from dcube.data.manifest import SPLIT_NAMES, same_text
from dcube.data.records import Record
from dcube.errors import InputError


def split_folders(root: Path, folders: list[Path]) -> list[Path]:
    """Those of the `folders` of `root` that are splits (train, val, test) with class folders inside, where all folders
    are that hold images; none where none is. InputError for splits beside other folders of images, or beside a split
    without class folders.
    """
    full = [folder for folder in folders if list_folder(folder)[1] or _classes_in(folder)]
    inner = [folder for folder in full if _classes_in(folder)]
    splits = [folder for folder in inner if folder.name.lower() in SPLIT_NAMES]
    other = next((folder.name for folder in full if folder.name.lower() not in SPLIT_NAMES), None)
    if splits and other and (inner == full or len(splits) > 1):
        raise InputError(
            f"{root} has the split {splits[0].name} and beside it {other}; call the folders train, val and test, or"
            f" take {other} away."
        )
    if other or not splits:
        return []
    if flat := next((folder.name for folder in full if folder not in inner), None):
        raise InputError(
            f"{root / flat} holds images but no class folders, as {splits[0].name} beside it does; sort them into one"
            " sub-folder per class, or take the folder away."
        )
    return splits


def flat_splits(folders: list[Path]) -> list[Path]:
    """Those of the folders that are splits (train, val, test) with images and no class folders, where all are that hold
    anything; else none.
    """
    full = [folder for folder in folders if any(list_folder(folder)[:2])]
    named = all(folder.name.lower() in SPLIT_NAMES for folder in full)
    return full if named and not any(map(_classes_in, full)) else []


def _classes_in(folder: Path) -> bool:
    return any(map(_holds_images, list_folder(folder)[0]))


def class_records(root: Path, folders: list[Path], split: str | None) -> tuple[list[Record], int]:
    """The images of class folders below `root`, and how many other files there are. InputError for a class without
    images where no split is named, and for folders of images inside a class.
    """
    records, empty, ignored = [], [], 0
    for folder in folders:
        below, images, skipped = list_folder(folder)
        nested = next((child for child in below if _holds_images(child)), None)
        if nested is not None:
            # such folders mean patients in one set, masks in another: guessing would mix or leak
            raise InputError(
                f"{nested} is a folder of images inside the class folder {folder.name}; move the images up,"
                " or say in a manifest.csv what belongs to whom (path,label,patient_id)."
            )
        ignored += skipped
        if not images:
            empty.append(folder)
        for image in images:
            path = image.relative_to(root).as_posix()
            records.append(Record(path, same_text(folder.name), path, split))
    if records and empty and split is None:
        raise InputError(f"{empty[0]} stands where a class is expected, but holds no image; fill or remove it.")
    return records, ignored


def _holds_images(folder: Path) -> bool:
    """At any depth, but not below a link, which may lead back."""
    folders, images, _ = list_folder(folder)
    return bool(images) or (not folder.is_symlink() and any(map(_holds_images, folders)))


def list_folder(folder: Path) -> tuple[list[Path], list[Path], int]:
    """Sorted sub-folders, sorted image files, and the number of other files; hidden ones count as others."""
    folders, images, others = [], [], 0
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:
        raise InputError(f"The folder {folder} cannot be read: permission denied.") from error
    for entry in entries:
        if entry.is_dir():
            folders += [] if hidden(entry.name) else [Path(entry.path)]
        elif not hidden(entry.name) and entry.name.lower().endswith(SUFFIXES) and not is_odd(entry):
            images.append(Path(entry.path))
        else:
            others += 1
    return folders, images, others


def is_odd(entry: os.DirEntry[str] | Path) -> bool:
    """A pipe, a socket or a device, which nobody can read as a file."""
    return not entry.is_file() and os.path.exists(entry)  # a link to nothing is read, and named as broken


def hidden(name: str) -> bool:
    """Whether a file or folder is one that the system put there."""
    return name.startswith((".", "__MACOSX"))


def check_name(path: str | Path) -> None:
    """InputError for a file name that no table could hold: bytes that are not UTF-8, as old ZIP archives leave them, or
    a carriage return.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"The name {ascii(str(path))} is not valid UTF-8; rename the file or folder.") from error
    if "\r" in str(path):
        raise InputError(f"The name {ascii(str(path))} holds a carriage return; rename the file or folder.")
