"""What `dcube predict` takes for images."""

import os
from pathlib import Path

import pytest
from PIL import Image

from dcube.errors import InputError
from dcube.prediction import list_images


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)
    return path


def test_linked_folders_are_followed_once_and_hidden_ones_are_not(tmp_path: Path) -> None:
    new, archive = tmp_path / "new", tmp_path / "archive"
    plain, _ = write(new / "a" / "1.png"), write(archive / "deep" / "2.png")
    for name in (".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/1.png", "a/.hidden.png"):
        write(new / name)
    (new / "b").symlink_to(archive)
    (archive / "back").symlink_to(new)
    assert list(list_images([new], by_group=True).items()) == [
        (str(plain), str(plain.parent)), (str(new / "b" / "deep" / "2.png"), str(new / "b" / "deep")),
    ]  # fmt: skip


def test_what_is_passed_over_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write(tmp_path / "a/1.png")
    assert list(list_images([tmp_path])) == [str(image)] and capsys.readouterr().err == ""
    (tmp_path / "a/2.webp").touch()
    (tmp_path / "b.txt").touch()
    list_images([tmp_path])
    assert "2 other files are passed over, such as 2.webp" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_no_image_and_a_link_to_nothing_a_broken_one(tmp_path: Path) -> None:
    """Reading a pipe would wait for ever."""
    image = write(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    (tmp_path / "3.png").symlink_to(tmp_path / "gone.png")
    assert list(list_images([tmp_path])) == [str(image), str(tmp_path / "3.png")]


def test_an_image_of_two_patients(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    table = tmp_path / "list.csv"
    table.write_text("path,patient_id\n1.png,A\n1.png,B\n")
    assert len(list_images([table])) == 1
    with pytest.raises(InputError, match="is given for A and for B; name it once"):
        list_images([table], by_group=True)


def test_a_folder_with_a_manifest_is_read_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As fit, audit and prepare do."""
    for name in ("1.png", "2.png", "deep/3.png", "unnamed.png"):
        write(tmp_path / name)
    table = tmp_path / "manifest.csv"
    table.write_text("path,patient_id\n2.png,A\n1.png,B\ndeep/3.png,A\n")
    found = list_images([tmp_path], by_group=True)
    assert "those that its manifest.csv names" in capsys.readouterr().err
    assert found == list_images([table], by_group=True) and capsys.readouterr().err == ""
    assert {Path(path).name: group for path, group in found.items()} == {"2.png": "A", "1.png": "B", "3.png": "A"}
    table.write_text("image,patient_id\n1.png,A\n")  # somebody else's table
    assert set(list_images([tmp_path], by_group=True).values()) == {str(tmp_path), str(tmp_path / "deep")}


def test_patients_of_two_tables_are_two_though_they_have_one_number(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.png", "4.png", "5.png"):
        write(tmp_path / name)
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("path,patient_id\n1.png,7\n2.png,7\n3.png,8\n")
    two.write_text("path,patient_id\n4.png,7\n5.png,9\n")
    groups = list(list_images([one, two], by_group=True).values())
    assert groups == [f"{one}: 7", f"{one}: 7", "8", f"{two}: 7", "9"]
    assert list(list_images([one, one], by_group=True).values()) == ["7", "7", "8"]
    two.write_text("path,patient_id\n1.png,7\n")
    with pytest.raises(InputError, match=r"1.png is given for .*one.csv: 7 and for .*two.csv: 7; name it once"):
        list_images([one, two], by_group=True)
