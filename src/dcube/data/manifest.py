"""Tables of images: the rows of a manifest, and what they say of path, label, group and split."""

import csv
import io
import posixpath
import re
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
PERSON = re.compile(r"(patient|subject|participant|group)(s|id|ids|no|nr|number|code|key|uid|identifier)?")
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


def record_of(row: dict[str, str], where: str) -> Record:
    """The image that a row names; InputError, which begins with `where`, for an empty cell or an unknown split."""
    if not row["path"] or not row["label"]:
        raise InputError(f"{where}: the {'label' if row['path'] else 'path'} is empty.")
    path = path_of(row)
    split = row.get("split", "")
    if split and split.lower() not in SPLIT_NAMES:
        raise InputError(f"{where}: '{split}' is not a split; use train, val or test.")
    return Record(path, row["label"], group_of(row), SPLIT_NAMES[split.lower()] if split else None)


def path_of(row: dict[str, str]) -> str:
    """The path that a row of a manifest names, also where it was written on Windows."""
    return posixpath.normpath(row["path"].replace("\\", "/"))


def group_of(row: dict[str, str]) -> str:
    """What must stay together, by a row of a manifest; the image itself where the row does not say."""
    return row.get("group_id") or row.get("patient_id") or path_of(row)


def tell_patients(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Say where the columns of groups are doubtful: rows without one, rows joined by a word for nothing, and patients
    that group_id parts, which may be meant: numbers of patients can come again elsewhere.

    InputError for a column that seems to name patients and has neither of the two names.
    """
    columns = rows[0].keys()
    if not {"group_id", "patient_id"} & columns:
        if meant := [name for name in columns if PERSON.fullmatch(re.sub(r"[^a-z]", "", name))]:
            raise InputError(
                f"{path} has no column patient_id, but '{meant[0]}': name it patient_id, so that no patient is on both"
                " sides of a split, or something else if it names no patients."
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
    groups: dict[str, set[str]] = {}
    for row in rows:
        if row.get("patient_id"):
            groups.setdefault(row["patient_id"], set()).add(group_of(row))
    if divided := [patient for patient, held in groups.items() if len(held) > 1]:
        print(
            f"{path}: {len(divided)} of {len(groups)} patients, such as {divided[0]}, have images in several groups;"
            " group_id decides, so a patient may be on both sides of a split"
        )
