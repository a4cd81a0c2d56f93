"""What a person names becomes a table, or one plain sentence before any pixel is decoded."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcube.data.records import ImageSet, Record
from dcube.data.sources import SOURCES, describe, open_images, source
from dcube.errors import InputError


def save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in ("benign", "malignant"):
        for number in range(3):
            save(tmp_path / "set" / label / f"{number}.png", number)
    return tmp_path / "set"


def manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "manifest.csv").write_bytes(text.encode(encoding))
    return folder


def test_class_folders(folder: Path) -> None:
    (folder / ".DS_Store").write_text("x")
    (folder / "benign" / "notes.txt").write_text("x")
    (folder / "benign" / ".hidden.png").write_text("x")
    images = open_images(str(folder))
    assert images.classes == ["benign", "malignant"] and len(images.records) == 6 and images.ignored == 3
    first = images.records[0]
    assert (first.path, first.group, first.split) == ("benign/0.png", "benign/0.png", None)
    assert images.read(images.records[1]).max() == 1
    assert "3 other files ignored" in describe(images)


def test_split_folders(tmp_path: Path) -> None:
    for split, label in [("Training", "a"), ("Training", "b"), ("Testing", "a"), ("valid", "b")]:
        save(tmp_path / split / label / "0.png")
    images = open_images(str(tmp_path))
    found = {(record.split, record.label) for record in images.records}
    assert found == {("train", "a"), ("train", "b"), ("test", "a"), ("val", "b")}


def test_manifest_of_a_spreadsheet(folder: Path) -> None:
    rows = [
        "Path,Label,age,group_id,patient_id,Split",
        'benign/0.png,"benign, small",61,g1,p1,Training',
        "benign\\1.png,malignant,61,,p1,valid",
        f"{(folder / 'benign' / '2.png').resolve()},malignant,61,,,TRAIN",
        'benign/0.png,"benign, small",62,g1,p9,train',
    ]
    images = open_images(str(manifest(folder, "\r\n".join(rows) + "\r\n", "utf-8-sig") / "manifest.csv"))
    assert [record.group for record in images.records] == ["g1", "p1", str((folder / "benign/2.png").resolve())]
    assert [record.split for record in images.records] == ["train", "val", "train"]
    assert images.records[0].label == "benign, small"
    assert [int(images.read(record).max()) for record in images.records] == [0, 1, 2]
    assert open_images(str(folder)).records == images.records


def test_a_patient_in_several_groups_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """group_id decides; a row without one falls back on its patient, who may then be divided unawares."""
    head = "path,label,group_id,patient_id\n"
    open_images(str(manifest(folder, head + "benign/0.png,b,g1,p1\nbenign/1.png,m,g1,p1\nbenign/2.png,m,g2,p2\n")))
    assert "several groups" not in capsys.readouterr().out
    open_images(str(manifest(folder, head + "benign/0.png,b,g1,p1\nbenign/1.png,m,,p1\nbenign/2.png,m,g2,p2\n")))
    assert "1 of 2 patients, such as p1, have images in several groups" in capsys.readouterr().out


HEAD = "path,label,split,patient_id\n"
GOOD = HEAD + "benign/0.png,b,train,p1\nbenign/1.png,m,train,p2\n"
BAD_MANIFESTS = {
    "no label": ("path,klass\nbenign/0.png,b\n", "no column 'label'.*found: path, klass"),
    "semicolons": ("path;label\nbenign/0.png;b\n", "no column 'path'.*commas"),
    "empty": ("", "no column 'path'"),
    "header only": (HEAD, "lists no images"),
    "missing file": (GOOD + "benign/7.png,m,train,p3\n", "names 1 missing file: benign/7.png"),
    "group in two splits": (
        GOOD + "benign/2.png,m,test,p2\n",
        "group 'p2' is in two splits, train and test \\(such as benign/1.png and benign/2.png\\): ",
    ),
    "unseen label": (GOOD + "benign/2.png,rare,test,p3\n", "test holds the label 'rare', which train never sees"),
    "one class": (HEAD + "benign/0.png,b,,\nbenign/1.png,b,,\n", "one class only \\('b'\\)"),
    "one class in train": (HEAD + "benign/0.png,b,train,\nbenign/1.png,m,test,\n", "never sees"),
    "unknown split": (GOOD + "benign/2.png,m,holdout,p3\n", "line 4: 'holdout' is not a split"),
    "some splits": (GOOD + "benign/2.png,m,,p3\n", "none to 1 of 3"),
    "no train": (HEAD + "benign/0.png,b,test,\nbenign/1.png,m,test,\n", "No image is in the split train"),
    "two labels": (GOOD + "./benign/0.png,m,train,p1\n", "line 4: benign/0.png stood before with another label"),
    "empty label": (GOOD + "benign/2.png,,train,p3\n", "line 4: the label is empty"),
    "more cells": (GOOD + "benign/2.png,m,train,p3,x\n", "line 4: more cells than the header has columns"),
    "two labels' columns": ("path,label,Label\nbenign/0.png,b,m\n", "several columns 'label'"),
    "a patient's column": ("path,label,PatientID\nbenign/0.png,b,p1\n", "or group_id, but 'patientid'"),
    "a subject's column": ("path,label,Subject No\nbenign/0.png,b,p1\n", "or group_id, but 'subject no'"),
    "empty path": (GOOD + ",m,train,p3\n", "line 4: the path is empty"),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_bad_manifests_are_explained(folder: Path, name: str) -> None:
    text, reason = BAD_MANIFESTS[name]
    with pytest.raises(InputError, match=reason) as caught:
        open_images(str(manifest(folder, text)))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_a_comma_at_the_end_of_every_line_is_no_column(folder: Path) -> None:
    text = "path,label,\nbenign/0.png,b,\nbenign/1.png,m,,\nbenign/2.png,m\n"
    assert [r.label for r in open_images(str(manifest(folder, text))).records] == ["b", "m", "m"]


def test_rows_without_a_patient_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = ("", "NaN", "7")
    rows = [f"{label}/{n}.png,{label},{who}" for label in ("benign", "malignant") for n, who in enumerate(people)]
    images = open_images(str(manifest(folder, "\n".join(["path,label,patient_id", *rows]))))
    assert {record.group for record in images.records} == {"benign/0.png", "malignant/0.png", "NaN", "7"}
    said = capsys.readouterr().out
    assert "2 of 6 images have no patient_id" in said and "2 images have the patient 'NaN'" in said
    open_images(str(manifest(folder, "path,label,patient_age,view\nbenign/0.png,b,40,a\nbenign/1.png,m,50,b\n")))
    assert capsys.readouterr().out == ""


def test_what_nothing_is_trained_on_need_not_be_fit_for_it(tmp_path: Path, folder: Path) -> None:
    only = manifest(folder, HEAD + "benign/0.png,b,test,\nbenign/1.png,b,test,\n")
    with pytest.raises(InputError, match="No image is in the split train"):
        open_images(str(only), classes=1)
    assert len(open_images(str(only), classes=None).records) == 2


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="needs file names that are bytes")
def test_a_name_that_no_table_could_hold(folder: Path) -> None:
    (folder / "benign" / os.fsdecode(b"f\xfcr.png")).touch()
    with pytest.raises(InputError, match="is not valid UTF-8; rename"):
        open_images(str(folder))


def test_manifest_in_another_encoding_is_explained(folder: Path) -> None:
    with pytest.raises(InputError, match="not UTF-8"):
        open_images(str(manifest(folder, GOOD + "benign/2.png,bösartig,train,p3\n", "latin-1")))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder or file"):
        open_images(str(tmp_path / "nothing"))


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        open_images(str(tmp_path))


def test_one_class_folder(tmp_path: Path) -> None:
    save(tmp_path / "benign" / "0.png")
    with pytest.raises(InputError, match="one class only"):
        open_images(str(tmp_path))


def test_images_without_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "0.png")
    with pytest.raises(InputError, match="no class folders"):
        open_images(str(tmp_path))


def test_a_class_folder_without_images_is_not_dropped_silently(folder: Path) -> None:
    (folder / "normal").mkdir()
    with pytest.raises(InputError, match="normal stands where a class is expected"):
        open_images(str(folder))


def test_folders_inside_classes_are_not_guessed_at(folder: Path) -> None:
    save(folder / "benign" / "masks" / "0.png")
    with pytest.raises(InputError, match="masks is a folder of images inside the class folder benign"):
        open_images(str(folder))


def test_images_deeper_inside_a_class_are_not_lost(folder: Path) -> None:
    (folder / "benign/empty/deeper").mkdir(parents=True)
    assert len(open_images(str(folder)).records) == 6
    for number in range(3):
        (folder / f"benign/empty/back{number}").symlink_to(folder / "benign/empty")
    assert len(open_images(str(folder)).records) == 6
    save(folder / "benign/P9/series/0.png")
    with pytest.raises(InputError, match="P9 is a folder of images inside the class folder benign"):
        open_images(str(folder))


def test_a_misspelt_split_is_named(tmp_path: Path) -> None:
    for split in ("train", "tests"):
        for label in "ab":
            save(tmp_path / split / label / "0.png")
    with pytest.raises(InputError, match="has the split train and beside it tests; call the folders train, val"):
        open_images(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_image(folder: Path) -> None:
    os.mkfifo(folder / "benign" / "pipe.png")
    images = open_images(str(folder))
    assert len(images.records) == 6 and images.ignored == 1


def test_a_carriage_return_in_a_name(folder: Path) -> None:
    save(folder / "benign" / "a\rb.png")
    with pytest.raises(InputError, match="holds a carriage return; rename"):
        open_images(str(folder))


def test_a_single_image_is_no_data_set(folder: Path) -> None:
    with pytest.raises(InputError, match="neither a folder nor a manifest"):
        open_images(str(folder / "benign" / "0.png"))


def test_a_new_source_is_one_registered_function() -> None:
    @source
    def stripes(data: str, seed: int) -> ImageSet | None:
        if data != "stripes:":
            return None
        records = tuple(Record(f"{label}{i}", label, f"g{i}") for label in ("across", "down") for i in range(3))
        pattern = np.tile(np.array([0, 255], np.uint8), (8, 4))
        return ImageSet(data, None, records, lambda r: pattern if r.label == "down" else pattern.T)

    try:
        assert open_images("stripes:").classes == ["across", "down"]
    finally:
        SOURCES.remove(stripes)
