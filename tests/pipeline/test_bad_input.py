"""Whatever is wrong with the input is said in one plain sentence, with exit status 2, and nothing is left behind."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tiny_fit import PHANTOM, cli, contents, done, refused, write_bomb, write_image, write_manifest, write_scans


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No store and no run may stand after a refusal."""
    monkeypatch.setenv("DCUBE_CACHE", str(tmp_path / "cache"))
    yield
    assert not list((tmp_path / "cache").rglob("*.*")), "no store, nor a part of one"
    assert not (tmp_path / "run").exists()


@pytest.fixture
def fit(recipe: Path, tmp_path: Path) -> Callable[..., str]:
    """The sentence with which `dcube fit DATA` is refused."""

    def sentence(data: object, *more: object) -> str:
        return refused("fit", data, "--out", tmp_path / "run", "--recipe", recipe, *more)

    return sentence


def write_nan(path: Path) -> Path:
    pixels = np.random.default_rng(0).random((24, 24)).astype(np.float32)
    pixels[3, 5] = np.nan
    tifffile.imwrite(path, pixels)
    return path


def write_text_as_png(path: Path) -> Path:
    path.write_text("this is no image")
    return path


def write_truncated(path: Path) -> Path:
    whole = write_image(path, 7).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


BROKEN = {
    "text.png": (write_text_as_png, "not a PNG, JPEG, TIFF or BMP image"),
    "truncated.png": (write_truncated, "damaged"),
    "bomb.png": (write_bomb, "more than 100 million pixels"),
    "nan.tif": (write_nan, "NaN or infinite"),
}


# ---- what is given as data
def test_missing_folder(fit: Callable[..., str], tmp_path: Path) -> None:
    assert f"no folder or file '{tmp_path / 'scans'}'" in fit(tmp_path / "scans")


def test_empty_folder(fit: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    assert "holds no images" in fit(tmp_path / "scans")


def test_one_class(fit: Callable[..., str], tmp_path: Path) -> None:
    assert "one class only ('benign')" in fit(write_scans(tmp_path / "scans", 8, ("benign",)))


def test_manifest_without_labels(fit: Callable[..., str], tmp_path: Path) -> None:
    assert "no column 'label'" in fit(write_manifest(tmp_path / "scans", column="diagnosis"))


def test_manifest_that_names_a_missing_file(fit: Callable[..., str], tmp_path: Path) -> None:
    data = write_manifest(tmp_path / "scans")
    (data / "benign/003.png").unlink()
    assert "names 1 missing file: benign/003.png" in fit(data)


def edit(manifest: Path, old: str, new: str) -> Path:
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))
    return manifest


def test_group_in_two_splits(fit: Callable[..., str], tmp_path: Path) -> None:
    data = write_manifest(tmp_path / "scans")
    edit(data / "manifest.csv", "benign/001.png,benign,benign-0,train", "benign/001.png,benign,benign-0,test")
    assert "'benign-0' is in two splits, train and test" in fit(data)
    assert "two splits" in fit(data, "--dry-run")


def test_label_of_the_test_split_that_train_never_sees(fit: Callable[..., str], tmp_path: Path) -> None:
    data = write_manifest(tmp_path / "scans")
    edit(data / "manifest.csv", "benign/007.png,benign,benign-3,test", "benign/007.png,cyst,benign-3,test")
    assert "test holds the label 'cyst', which train never sees" in fit(data)


def test_too_few_groups(fit: Callable[..., str], tmp_path: Path) -> None:
    assert "'benign' has 2 group(s)" in fit(write_scans(tmp_path / "scans", 2), "--dry-run")


@pytest.mark.parametrize("name", BROKEN)
def test_six_percent_of_broken_files(fit: Callable[..., str], tmp_path: Path, name: str) -> None:
    write, reason = BROKEN[name]
    count = 1 if name == "bomb.png" else 6  # of 17 images, of 100: 6 %
    data = write_scans(tmp_path / "scans", 8 * count - (count > 1))
    for i in range(count):
        write(data / f"benign/{i}-{name}")
    sentence = fit(data)
    assert "cannot be read, more than the 5% that are tolerated" in sentence
    assert reason in sentence and f"benign/0-{name}" in sentence


# ---- what is given to predict
@pytest.mark.parametrize("name", BROKEN)
def test_predict_with_nothing_but_a_broken_file(fitted: Path, tmp_path: Path, name: str) -> None:
    write, reason = BROKEN[name]
    sentence = refused("predict", fitted, write(tmp_path / name), "--out", tmp_path / "rows.csv")
    assert "None of 1 images can be read" in sentence and reason in sentence
    assert not (tmp_path / "rows.csv").exists()


def test_predict_leaves_out_one_broken_file_of_many(fitted: Path, tmp_path: Path) -> None:
    for i in range(20):
        write_image(tmp_path / "new" / f"{i}.png", i)
    write_text_as_png(tmp_path / "new" / "x.png")
    result = done("predict", fitted, tmp_path / "new")
    assert result.stdout.startswith("path,predicted,") and len(result.stdout.splitlines()) == 21
    assert f"left out: {tmp_path / 'new' / 'x.png'}: this is not" in result.stderr


def test_what_is_no_run(tmp_path: Path, fitted: Path) -> None:
    image = write_image(tmp_path / "1.png", 1)
    assert "is not a run folder" in refused("predict", tmp_path, image)
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(fitted / "experiment.yaml", half)
    assert f"`dcube diffuse {half}` makes it" in refused("predict", half, image)


# ---- settings
def test_unknown_recipe(tmp_path: Path) -> None:
    sentence = refused("fit", PHANTOM, "--out", tmp_path / "run", "--recipe", "smal")
    assert "no recipe 'smal' (did you mean small?)" in sentence


def test_misspelt_key_names_its_neighbours(fit: Callable[..., str], tmp_path: Path) -> None:
    assert "did you mean classifier.dropout?" in fit(PHANTOM, "--set", "classifier.dropuot=0.3")
    assert "key.path=value" in fit(PHANTOM, "--set", "classifier.dropout")
    recipe = tmp_path / "own.yaml"
    recipe.write_text("diffusion: {image_sise: 32}\n")
    assert "diffusion.image_size" in refused("fit", PHANTOM, "--out", tmp_path / "run", "--recipe", recipe)


def test_bad_value(fit: Callable[..., str]) -> None:
    assert "classifier.dropout" in fit(PHANTOM, "--set", "classifier.dropout=much")
    assert "diffusion.image_size 15" in fit(PHANTOM, "--set", "diffusion.image_size=15")
    assert "did you mean patients" in fit("phantom:patient=12")


def test_bad_device(fit: Callable[..., str], fitted: Path, tmp_path: Path) -> None:
    assert "'gpu' is not one of 'auto', 'cpu', 'cuda', 'mps'" in fit(PHANTOM, "--device", "gpu")
    assert "no device 'gpu'" in fit(PHANTOM, "--set", "runtime.device=gpu")


def test_device_that_is_not_there(fit: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "No CUDA device is available here" in fit(PHANTOM, "--device", "cuda")


def test_mistakes_on_the_command_line(fitted: Path) -> None:
    assert "Missing" in refused("fit")
    assert "--recipe" in refused("fit", PHANTOM, "--recpie", "demo")
    assert "No such command 'fitt'" in refused("fitt")


def test_left_out_class_that_does_not_exist(fit: Callable[..., str]) -> None:
    assert "benign, malignant, normal" in fit(PHANTOM, "--set", "evaluation.without=[[cyst]]")
    assert "at least two" in fit(PHANTOM, "--set", "evaluation.without=[[benign, normal]]")


def test_parts_that_do_not_exist_are_named_before_any_work(fit: Callable[..., str], tmp_path: Path) -> None:
    assert "timm has no model 'resnet5O'" in fit(PHANTOM, "--set", "classifier.cnn=resnet5O")
    assert "there is no file" in fit(PHANTOM, "--set", f"classifier.cnn_weights={tmp_path / 'none.safetensors'}")
    assert "this model has the blocks 0 .. 4" in fit(PHANTOM, "--set", "features.blocks=[2,7]")


def test_a_refused_setting_leaves_a_finished_run_as_it_is(copied: Path, recipe: Path) -> None:
    before = contents(copied)
    assert "benign, malignant, normal" in refused("evaluate", copied, "--set", "evaluation.without=[[cyst]]")
    assert "blocks 0 .. 4" in refused("select", copied, "--set", "features.blocks=[7]")
    sentence = refused("classify", copied, "--set", "features.blocks=[1]")
    assert "features.blocks: None -> [1] belongs to a stage before 'classify'" in sentence
    assert "no model 'resnet5O'" in refused("classify", copied, "--set", "classifier.cnn=resnet5O")
    changed = ("fit", PHANTOM, "--out", copied, "--recipe", recipe, "--restart", "--no-test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCUBE_CACHE", str(copied.parent / "other"))
        assert "blocks 0 .. 4" in refused(*changed, "--set", "features.blocks=[7]")
        assert not (copied.parent / "other").exists()
    assert contents(copied) == before


# ---- the run folder
def test_run_folder_of_another_data_set(copied: Path, recipe: Path) -> None:
    before = contents(copied)
    other = "phantom:patients=12,slices=1,size=32"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCUBE_CACHE", str(copied.parent / "other"))
        sentence = refused("fit", other, "--out", copied, "--recipe", recipe)
    assert f"belongs to the data '{PHANTOM}'" in sentence and f"not to '{other}'" in sentence
    assert contents(copied) == before


def test_folder_with_other_files(recipe: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "photos/1.png", 1)
    sentence = refused("fit", PHANTOM, "--out", tmp_path / "photos", "--recipe", recipe)
    assert "holds other files (1.png)" in sentence
    assert "holds other files (1.png)" in refused(
        "fit", PHANTOM, "--out", tmp_path / "photos", "--recipe", recipe, "--folds", 2
    )
    fit = ("fit", PHANTOM, "--recipe", recipe, "--out", tmp_path / "photos")
    assert "holds other files (1.png)" in refused(*fit, "--restart")
    assert "is a file" in refused("fit", PHANTOM, "--out", tmp_path / "photos/1.png", "--recipe", recipe)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["1.png"]


def test_damaged_weights_cost_no_look_at_the_test_split(copied: Path, tmp_path: Path) -> None:
    weights, stamps = copied / "classifier/model.safetensors", copied / ".stages.json"
    whole, before = weights.read_bytes(), stamps.read_bytes()
    for damaged in (b"", b"\0" * 100, whole[:-1000], whole[:200]):
        weights.write_bytes(damaged)
        result = cli("evaluate", copied, "--split", "test", "--again")
        assert result.exit_code == 1 and "remove the file and repeat the command" in result.stderr, result.output
        assert stamps.read_bytes() == before
    weights.write_bytes(whole)


# ---- a full disk
def test_no_space_left_is_said_and_the_fit_goes_on_later(
    fitted: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync
    out = tmp_path / "full"
    fit = ("fit", PHANTOM, "--out", out, "--recipe", recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCUBE_CACHE", str(tmp_path / "elsewhere"))
        for allowed in (0, 3, 40, 55):  # in the store, the run folder, diffusion, classifier
            calls = iter(range(1000))

            def full(handle: int, allowed: int = allowed, calls: Iterator[int] = calls) -> None:
                if next(calls) >= allowed:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                flush(handle)

            monkeypatch.setattr(os, "fsync", full)
            sentence = refused(*fit)
            assert "No space" in sentence and "free some" in sentence
            assert not list(out.glob(".*.tmp*"))
        monkeypatch.setattr(os, "fsync", flush)
        done(*fit)
    assert (out / "evaluation/metrics.json").read_bytes() == (fitted / "evaluation/metrics.json").read_bytes()


NAMESPACE = ["unshare", "--mount", "--map-root-user"]  # where a process may mount what nobody else sees


def may_mount() -> bool:
    try:
        command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.mark.skipif(not may_mount(), reason="may not mount a small device")
def test_a_device_that_is_really_full(fitted: Path, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    child = [sys.executable, str(Path(__file__).parent / "full_disk_child.py")]
    sizes = ["4k", "300k", "1m", "4m", "9m", "64m"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCUBE_CACHE", str(tmp_path / "elsewhere"))
        result = subprocess.run(
            [*NAMESPACE, *child, str(tmp_path / "device"), str(recipe), *sizes],
            capture_output=True, text=True, timeout=200,
        )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("No space left on the device") == 5
    digest = hashlib.sha256((fitted / "evaluation/metrics.json").read_bytes()).hexdigest()
    assert digest in result.stdout, "the result of an uninterrupted run"
