"""What `dcube predict` takes for images."""

from pathlib import Path

from PIL import Image

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
