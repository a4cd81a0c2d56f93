"""What `dcube predict` reads and writes around the model: lists of images, groups, tables."""

import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcube.data.decode import SUFFIXES
from dcube.data.folders import check_name, hidden, is_odd
from dcube.data.manifest import group_of, manifest_in, path_of, read_rows
from dcube.errors import InputError
from dcube.files import check_file_writable, write_json, write_text

Row = dict[str, Any]
Group = tuple[str, str]  # the manifest that names it, empty where it is a folder; its name


def list_images(inputs: Sequence[Path], by_group: bool = False) -> dict[str, str]:
    """Image path -> group, in order and each once, for files, folders and CSV manifests. A folder is searched to any
    depth, or read by its manifest.csv where that has a column path, which is said on stderr.

    The group is the parent folder, or the manifest's group_id (else patient_id) column. Groups of two manifests are two
    also where they have one name; then the manifest stands before it. Raises InputError for a missing file, a folder
    without images, and with `by_group` a manifest without a group column and an image of two groups.
    """
    found: dict[str, Group] = {}
    for entry in inputs:
        if (table := table_of(entry)) is not None:
            pairs = _read_manifest(table, by_group)
            if table != entry:
                print(f"{entry}: the images are those that its {table.name} names", file=sys.stderr)
        elif entry.is_dir():
            inside = _inside(entry)
            if not inside:
                raise InputError(f"The folder {entry} holds no images ({', '.join(SUFFIXES)}).")
            pairs = [(str(path), ("", str(path.parent))) for path in inside]
        elif not entry.is_file():
            raise InputError(f"There is no file or folder {entry}.")
        else:
            pairs = [(str(entry), ("", str(entry.parent)))]
        for path, group in pairs:
            check_name(path)
            if (known := found.setdefault(path, group)) != group and by_group:
                names = _told_apart([known, group])
                raise InputError(f"{path} is given for {names[known]} and for {names[group]}; name it once.")
    names = _told_apart(found.values())
    return {path: names[group] for path, group in found.items()}


def _told_apart(groups: Iterable[Group]) -> dict[Group, str]:
    """The name of every group, with its manifest before it where others have groups of that name."""
    held = set(groups)
    count = Counter(name for _, name in held)
    return {group: ": ".join(filter(None, group)) if count[group[1]] > 1 else group[1] for group in held}


def table_of(entry: Path) -> Path | None:
    """The manifest that an input is, or that a folder is read by; None where there is none. InputError for a
    manifest.csv that is no UTF-8 CSV or lists nothing.
    """
    if entry.is_file():
        return entry if entry.suffix.lower() == ".csv" else None
    table = manifest_in(entry) if entry.is_dir() else None
    return table if table and "path" in read_rows(table, ())[0][1] else None


def _inside(folder: Path) -> list[Path]:
    """Image files at any depth, of linked folders too and not of hidden ones, as in training; sorted. How many others
    there are, such as pipes, is said on stderr. Raises PermissionError where a folder below cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found, visited = [], {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        inside, folders[:] = sorted(folders), []
        for name in inside:
            real = os.path.realpath(os.path.join(place, name))
            if not hidden(name) and real not in visited:  # a link may lead back
                folders.append(name)
                visited.add(real)
        found += [Path(place) / name for name in files if not hidden(name)]
    images = sorted(path for path in found if path.suffix.lower() in SUFFIXES and not is_odd(path))
    if len(found) > len(images) > 0:
        others = sorted({*found} - {*images})
        print(f"{folder}: {len(others)} other files are passed over, such as {others[0].name}", file=sys.stderr)
    return images


def _read_manifest(manifest: Path, by_group: bool) -> list[tuple[str, Group]]:
    rows = [row for _, row in read_rows(manifest, ("path",))]
    if by_group and not {"group_id", "patient_id"} & rows[0].keys():
        raise InputError(f"The manifest {manifest} has no column group_id or patient_id, which --by-group needs.")
    pairs = [(manifest.parent / path_of(row), group_of(row)) for row in rows]
    if missing := [str(path) for path, _ in pairs if not path.is_file()]:
        raise InputError(f"The manifest {manifest} names {len(missing)} missing file(s), the first being {missing[0]}.")
    return [(str(path), (str(manifest), name)) for path, name in pairs]


def average_groups(rows: Sequence[Row], group_of: Mapping[str, str]) -> list[Row]:
    """One row per group with the mean of its images' probabilities; rows as of `DCube.predict_files`."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(group_of[str(row["path"])], []).append(row)
    averaged = []
    for group, members in groups.items():
        columns = [name for name in members[0] if name.startswith("p_")]
        means = {name: sum(row[name] for row in members) / len(members) for name in columns}
        best = max(means, key=lambda name: means[name])
        warned = [row["warning"] for row in members if row.get("warning")]
        averaged.append(
            {"group": group, "images": len(members), "predicted": best.removeprefix("p_"), "confidence": means[best]}
            | means
            | {"warning": f"of {len(warned)} of {len(members)} images, such as: {warned[0]}" if warned else ""}
        )
    return averaged


def check_output(out: Path | None) -> None:
    """InputError for a name that is neither .csv nor .json or where no file can be written, before any work is done."""
    if out is not None and out.suffix.lower() not in (".csv", ".json"):
        raise InputError(f"--out {out} must end in .csv or .json.")
    if out is not None:
        check_file_writable(out)


def refuse_overwriting(out: Path | None, inputs: Sequence[Path], images: Iterable[str]) -> None:
    """InputError where `out` is one of the inputs, the manifest of one or one of the listed images, under whatever
    name.
    """
    if out is None or not out.exists():
        return
    tables = [table for entry in inputs if (table := table_of(entry)) is not None]
    place = os.path.realpath(out)
    if any(os.path.realpath(one) == place for one in [*map(str, [*inputs, *tables]), *images]):
        raise InputError(f"--out {out} is one of the files to predict from, and would be lost; name another file.")


def write_rows(rows: Sequence[Row], out: Path | None) -> None:
    """Rows to a CSV or JSON file, or as CSV to stdout."""
    if out is not None and out.suffix.lower() == ".json":
        write_json(out, list(rows))
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    if out is None:
        print(text.getvalue(), end="")
    else:
        write_text(out, text.getvalue())
