"""Tables and folders as people leave them: other names for the same thing, several spellings, splits half said."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcube.config import DataConfig
from dcube.data.sources import open_images
from dcube.data.store import build_store
from dcube.data.unlabelled import UNLABELLED, open_unlabelled
from dcube.errors import InputError
from dcube.prediction import table_of

COMPOSED, APART = "gutartig-\u00e4", "gutartig-a\u0308"  # one word, as two systems write it


def save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(8):
        save(tmp_path / "set" / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "set"


def write(folder: Path, columns: str, cells: list[str], name: str = "manifest.csv") -> Path:
    """A row per image, its label, and a cell more."""
    rows = [f"{'ab'[i % 2]}/{i}.png,{'ab'[i % 2]},{cell}" for i, cell in enumerate(cells)]
    (folder / name).write_text("\n".join([f"path,label,{columns}", *rows]) + "\n", encoding="utf-8")
    return folder


def groups(folder: Path) -> list[str]:
    return [record.group for record in open_images(str(folder)).records]


@pytest.mark.parametrize("name", ["Manifest.csv", "MANIFEST.CSV"])
def test_a_manifest_is_found_however_it_is_written(folder: Path, name: str) -> None:
    write(folder, "patient_id", ["p1", "p1", "p2", "p2"] * 2, name)
    assert set(groups(folder)) == {"p1", "p2"}
    assert table_of(folder) == folder / name
    (folder / "manifest.csv").write_text("path,label\n")
    with pytest.raises(InputError, match="holds both"):
        open_images(str(folder))


def test_a_manifest_that_leads_to_nothing(folder: Path) -> None:
    os.symlink(folder / "gone.csv", folder / "manifest.csv")
    with pytest.raises(InputError, match="is a link to a file that is not there"):
        open_images(str(folder))


def test_another_table_beside_class_folders_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_images(str(folder))
    assert "not read" not in capsys.readouterr().out
    write(folder, "patient_id", ["p1"] * 8, "metadata.csv")
    assert len(set(groups(folder))) == 8
    assert "metadata.csv is not read; a table of images is called manifest.csv" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["set", "subset", "fold", "Partition"])
def test_a_split_under_another_name_is_not_passed_over(folder: Path, column: str) -> None:
    write(folder, column, ["train"] * 6 + ["Test", ""])
    with pytest.raises(InputError, match=f"no column split, but '{column.lower()}' holds test, train: name it split"):
        open_images(str(folder))
    write(folder, column, ["train"] * 7 + [""])
    assert open_images(str(folder)).records[0].split is None, "the same everywhere says nothing"
    write(folder, column, ["train"] * 6 + ["Test", "left out"])
    assert open_images(str(folder)).records[0].split is None, "then it is something else"
    write(folder, f"split,{column}", ["train,train"] * 6 + ["test,test"] * 2)
    assert open_images(str(folder)).records[-1].split == "test"


@pytest.mark.parametrize("column", ["case_id", "case", "PID", "mrn", "PatientName", "study_id", "scan id"])
def test_a_patient_under_another_name_is_not_passed_over(folder: Path, column: str) -> None:
    write(folder, column, ["1", "1", "2", "2", "3", "3", "4", "4"])
    with pytest.raises(InputError, match=f"no column patient_id or group_id, but '{column.lower()}': name it so"):
        open_images(str(folder))


@pytest.mark.parametrize("column", ["study", "scanner", "age", "series", "mrn_checked"])
def test_what_may_be_anything_else_is_left_alone(folder: Path, column: str) -> None:
    write(folder, column, ["1", "1", "2", "2", "3", "3", "4", "4"])
    assert len(set(groups(folder))) == 8


@pytest.mark.parametrize("cells", ["01234567", "00001111", "11111111"])
def test_what_no_images_share_or_all_do_is_no_patient(folder: Path, cells: str) -> None:
    """An image's own number; cases and controls; the series that all are of."""
    for column in ("scan_id", "case", "Series Number", "StudyInstanceUID"):
        write(folder, column, [*cells])
        assert len(set(groups(folder))) == 8
    write(folder, "StudyInstanceUID", ["1.2", "1.2", "1.3", "1.3", "1.4", "1.4", "1.5", "1.5"])
    with pytest.raises(InputError, match="but 'studyinstanceuid': name it so"):
        open_images(str(folder))


def test_one_text_in_two_forms_is_one_patient_and_one_class(folder: Path, tmp_path: Path) -> None:
    write(folder, "patient_id", ["M\u00fcller", "Mu\u0308ller", *"abcdef"])
    assert groups(folder)[0] == groups(folder)[1]
    for number, label in enumerate((COMPOSED, APART, "b\u00f6se", "b\u00f6se")):
        save(tmp_path / "classes" / label / f"{number}.png", number)
    images = open_images(str(tmp_path / "classes"))
    assert images.classes == ["b\u00f6se", COMPOSED]
    assert all(images.read(record).shape == (8, 8) for record in images.records), "files are found as they are called"


def test_patients_spelt_in_several_ways_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "patient_id", ["P1", "p1", "17", "017", "17.0", "170", "x", "y"])
    assert len(set(groups(folder))) == 8
    said = capsys.readouterr().out
    assert "2 patients seem to be spelt in several ways, such as '" in said and "taken for several" in said
    write(folder, "patient_id", ["P1", "P1", "17", "170", "1.0", "10", "x", "y"])
    open_images(str(folder))
    assert "spelt" not in capsys.readouterr().out


def test_classes_that_differ_in_case_only(folder: Path) -> None:
    (folder / "manifest.csv").write_text("path,label\na/0.png,Benign\nb/1.png,benign\na/2.png,c\n")
    with pytest.raises(InputError, match="The classes 'Benign' and 'benign' of .* differ in large and"):
        open_images(str(folder))


def test_splits_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(3):
            save(tmp_path / split / f"{number}.png", number + 10 * (split == "test"))
    with pytest.raises(InputError, match="holds test, train without class folders; sort the images of each"):
        open_images(str(tmp_path))
    pile = open_unlabelled(str(tmp_path))
    assert {(record.label, record.split) for record in pile.records} == {(UNLABELLED, "train"), (UNLABELLED, "test")}
    assert len(pile.records) == 6 and pile.read(pile.records[0]).shape == (8, 8)


def test_a_folder_without_images_beside_splits_is_no_class(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in "ab":
            save(tmp_path / split / label / "0.png")
    for name in ("notes", "val"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("x")
    images = open_images(str(tmp_path))
    assert images.classes == ["a", "b"] and {record.split for record in images.records} == {"train", "test"}
    save(tmp_path / "val" / "1.png")
    with pytest.raises(InputError, match="val holds images but no class folders, as test beside it does"):
        open_images(str(tmp_path))
    (tmp_path / "val" / "1.png").unlink()
    save(tmp_path / "notes" / "1.png")
    with pytest.raises(InputError, match="has the split test and beside it notes; call the folders train"):
        open_images(str(tmp_path))


def test_linked_splits_are_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in "ab":
            save(tmp_path / "elsewhere" / split / label / "0.png")
        (tmp_path / "set").mkdir(exist_ok=True)
        os.symlink(tmp_path / "elsewhere" / split, tmp_path / "set" / split)
    assert {record.split for record in open_images(str(tmp_path / "set")).records} == {"train", "test"}


def test_a_given_split_that_cannot_be_read_is_not_replaced(tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for number in range(60):
        rows.append(f"{number}.png,{'ab'[number % 2]},{'test' if number >= 58 else 'train'}")
        save(tmp_path / "set" / f"{number}.png", number)
    (tmp_path / "set" / "manifest.csv").write_text("\n".join(rows) + "\n")
    for number in (58, 59):
        (tmp_path / "set" / f"{number}.png").write_text("damaged")
    with pytest.raises(InputError, match="No image of the split test can be read; repair its files"):
        build_store(open_images(str(tmp_path / "set")), DataConfig(size=8), tmp_path / "store")
