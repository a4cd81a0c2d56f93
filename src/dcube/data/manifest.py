"""Tables of images: the rows of a manifest, and what they say of path, label, group and split."""

import csv
import io
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dcube.data.records import Record
from dcube.errors import InputError

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
COLUMNS = ("path", "label", "split", "group_id", "patient_id")
MANIFEST = "manifest.csv"
PERSON = re.compile(r"(patient|subject|participant|person|group)(s|id|ids|no|nr|number|code|key|uid|name|identifier)?")
PERHAPS = re.compile(  # where images share a value
    r"case(s|id|ids|no|nr|number|code|key)?|pid|mrn|(study|series|scan|exam)(instance)?(id|no|nr|number|uid|key|code)"
)
UNKNOWN = {"nan", "none", "null", "n/a", "na", "unknown", "?", "-"}  # what stands in cells that should be empty


def read_rows(path: Path, needed: Sequence[str] = ("path", "label")) -> list[tuple[int, dict[str, str]]]:
    """The rows of a manifest, each with its line number; column names in lower case. InputError where it is no UTF-8
    CSV, lacks a needed column or any row, or where a row has more cells than the header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
        if twice := [name for name in COLUMNS if columns.count(name) > 1]:
            raise InputError(f"{path} has several columns '{twice[0]}' (in large or small letters); leave one of them.")
        reader.fieldnames = columns
        rows = []
        for row in reader:
            if any(map(str.strip, row.pop(None, []))):  # type: ignore[call-overload]  # the reader's key for the rest
                raise InputError(
                    f"{path}, line {reader.line_num}: more cells than the header has columns; put names that hold a"
                    " comma into quotation marks."
                )
            rows.append((reader.line_num, {key: (row[key] or "").strip() for key in columns}))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; save the manifest as UTF-8 CSV.") from error
    except csv.Error as error:
        raise InputError(f"{path} is not a readable CSV file ({error}).") from error
    for column in needed:
        if column not in columns:
            found = ", ".join(filter(None, columns)) or "nothing"
            raise InputError(
                f"{path} has no column '{column}' (found: {found}); a manifest needs"
                f" {'the columns ' if len(needed) > 1 else 'a column '}{' and '.join(needed)}, separated by commas."
            )
    if not rows:
        raise InputError(f"{path} lists no images.")
    return rows


def manifest_in(folder: Path) -> Path | None:
    """The table of a folder, called MANIFEST in large or small letters; None where there is none. InputError where
    there are two, or a link to nothing.
    """
    found = sorted(entry for entry in folder.iterdir() if entry.name.lower() == MANIFEST and not entry.is_dir())
    if len(found) > 1:
        raise InputError(f"{folder} holds both {found[0].name} and {found[1].name}; keep one of them.")
    if found and not found[0].exists():
        raise InputError(f"{found[0]} is a link to a file that is not there; repair or remove it.")
    return found[0] if found else None


def same_text(cell: str) -> str:
    """Text in one of the forms (NFC) that Unicode has for letters like an umlaut: systems write them differently."""
    return unicodedata.normalize("NFC", cell)


def record_of(row: dict[str, str], where: str) -> Record:
    """The image that a row names; InputError, which begins with `where`, for an empty cell or an unknown split."""
    if not row["path"] or not row["label"]:
        raise InputError(f"{where}: the {'label' if row['path'] else 'path'} is empty.")
    path = path_of(row)
    split = row.get("split", "")
    if split and split.lower() not in SPLIT_NAMES:
        raise InputError(f"{where}: '{split}' is not a split; use train, val or test.")
    return Record(path, same_text(row["label"]), group_of(row), SPLIT_NAMES[split.lower()] if split else None)


def path_of(row: dict[str, str]) -> str:
    """The path that a row of a manifest names, also where it was written on Windows."""
    return posixpath.normpath(row["path"].replace("\\", "/"))


def group_of(row: dict[str, str]) -> str:
    """What must stay together, by a row of a manifest; the image itself where the row does not say."""
    return same_text(row.get("group_id") or row.get("patient_id") or "") or path_of(row)


def tell_patients(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Say where the columns of groups are doubtful: rows without one, rows joined by a word for nothing, and patients
    that group_id parts, which may be meant: numbers of patients can come again elsewhere.

    InputError for a column that seems to name patients, or splits, and has none of their names.
    """
    columns = rows[0].keys()
    _refuse_hidden_split(path, rows)
    if not {"group_id", "patient_id"} & columns:
        if meant := [name for name in columns if _seems_to_group(name, rows)]:
            raise InputError(
                f"{path} has no column patient_id or group_id, but '{meant[0]}': name it so if its images belong"
                " together, so that none of them is on another side of a split, or otherwise if they do not."
            )
        return
    cells = [row.get("group_id") or row.get("patient_id") or "" for row in rows]
    if lacking := cells.count(""):
        print(f"{path}: {lacking} of {len(rows)} images have no patient_id or group_id; each is taken for a patient")
    for word, count in Counter(cell for cell in cells if cell.lower() in UNKNOWN).items():
        print(
            f"{path}: {count} images have the patient '{word}' and are taken for one patient; leave cells empty where"
            " it is not known"
        )
    _tell_alike(path, {group_of(row) for row, cell in zip(rows, cells, strict=True) if cell})
    groups: dict[str, set[str]] = {}
    for row in rows:
        if row.get("patient_id"):
            groups.setdefault(row["patient_id"], set()).add(group_of(row))
    if divided := [patient for patient, held in groups.items() if len(held) > 1]:
        print(
            f"{path}: {len(divided)} of {len(groups)} patients, such as {divided[0]}, have images in several groups;"
            " group_id decides, so a patient may be on both sides of a split"
        )


def _seems_to_group(name: str, rows: Sequence[dict[str, str]]) -> bool:
    """Whether a column is called as one of patients, or may be of them and has values that some images share."""
    plain = re.sub(r"[^a-z]", "", name)
    values = {row[name] for row in rows}
    return bool(PERSON.fullmatch(plain) or (PERHAPS.fullmatch(plain) and 2 < len(values) < len(rows)))


def _refuse_hidden_split(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """InputError for a column that holds nothing but names of several splits and is not called split, where none is."""
    others = rows[0].keys() - {*COLUMNS, ""}
    if "split" in rows[0]:
        return
    for name in sorted(others):
        held = {row[name].lower() for row in rows} - {""}
        if held <= SPLIT_NAMES.keys() and len({SPLIT_NAMES[word] for word in held}) > 1:
            raise InputError(
                f"{path} has no column split, but '{name}' holds {', '.join(sorted(held))}: name it split, or take the"
                " column out."
            )


def _tell_alike(path: Path, groups: set[str]) -> None:
    """Say which patients differ in nothing but large and small letters, leading zeros, or the .0 of a spreadsheet."""
    alike: dict[str, list[str]] = {}
    for group in sorted(groups):
        alike.setdefault(group.casefold().removesuffix(".0").lstrip("0"), []).append(group)
    if doubtful := [names for names in alike.values() if len(names) > 1]:
        print(
            f"{path}: {len(doubtful)} patients seem to be spelt in several ways, such as '{doubtful[0][0]}' and"
            f" '{doubtful[0][1]}', and are taken for several; spell them alike if they are one"
        )
