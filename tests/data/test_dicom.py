"""DICOM: the units of the file, and a sentence for whatever cannot be used."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcube.config import DataConfig
from dcube.data.decode import header_of, read_image
from dcube.data.dicom import _padding, is_dicom
from dcube.data.sources import open_images
from dcube.data.store import Store, build_store
from dcube.errors import InputError
from dcube.prediction import list_images

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from dicoms import RAMP, write  # noqa: E402


def test_values_are_those_of_the_modality(tmp_path: Path) -> None:
    found = read_image(write(tmp_path / "ct.dcm", RescaleSlope=2, RescaleIntercept=-1024))
    assert found.dtype == np.float32 and np.array_equal(found, 2.0 * RAMP - 1024)
    signed = RAMP.astype(np.int16) - 100
    assert np.array_equal(read_image(write(tmp_path / "mr.DICOM", signed)), signed)


def test_eight_bits_stay_eight_bits(tmp_path: Path) -> None:
    grey = RAMP.astype(np.uint8)
    found = read_image(write(tmp_path / "us.dcm", grey))
    assert found.dtype == np.uint8 and np.array_equal(found, grey)
    colour = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    assert np.array_equal(read_image(write(tmp_path / "photo.dcm", colour)), colour)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
def test_zero_is_black_whatever_the_file_says(tmp_path: Path, kind: type) -> None:
    shown = RAMP.astype(kind)
    lowest, highest = (np.iinfo(kind).min, np.iinfo(kind).max)
    stored = (lowest + highest - shown.astype(np.int64)).astype(kind)
    found = read_image(write(tmp_path / "cr.dcm", stored, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(found.astype(np.int64), shown)


def test_the_kind_of_a_file_follows_its_tags_and_not_its_values(tmp_path: Path) -> None:
    """Or images without dark pixels would be scaled as others are not."""
    bright = np.full((8, 8), 200, np.uint8)
    assert read_image(write(tmp_path / "a.dcm", bright, RescaleSlope=1, RescaleIntercept=-10)).dtype == np.float32
    assert read_image(write(tmp_path / "b.dcm", bright, RescaleSlope=1, RescaleIntercept=0)).dtype == np.uint8


def units(*pairs: tuple[float | None, float | None]) -> list[Any]:
    """An item of functional groups for each (slope, intercept)."""
    found = []
    for slope, intercept in pairs:
        values, item = pydicom.Dataset(), pydicom.Dataset()
        values.RescaleSlope, values.RescaleIntercept = slope, intercept
        item.PixelValueTransformationSequence = [values]
        found.append(item)
    return found


def test_a_single_frame_may_state_its_units_for_its_frames(tmp_path: Path) -> None:
    frame, shared = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
    both = {frame: units((2, -1024)), shared: units((3, 7))}
    expected = {
        "frame": (both, 2.0 * RAMP - 1024),
        "shared": ({shared: units((3, 0))}, 3.0 * RAMP),
        "frame without": ({frame: [pydicom.Dataset()], shared: units((3, 7))}, 3.0 * RAMP + 7),
        "frame empty": ({frame: units((None, None)), shared: units((3, 7))}, 3.0 * RAMP + 7),
        "top": (both | {"RescaleSlope": 5, "RescaleIntercept": 1}, 5.0 * RAMP + 1),
        "empty top": (both | {"RescaleSlope": "", "RescaleIntercept": ""}, 2.0 * RAMP - 1024),
    }
    for name, (tags, values) in expected.items():
        np.testing.assert_array_equal(read_image(write(tmp_path / f"{name}.dcm", **tags)), values, name)
    grey = write(tmp_path / "grey.dcm", RAMP.astype(np.uint8), **{shared: units((1, -1))})
    np.testing.assert_array_equal(read_image(grey), RAMP.astype(np.uint8) - 1.0)


def table(entries: np.ndarray, first: int = 0) -> list[Any]:
    """A modality LUT of these entries, for stored values from `first` on."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, 8 * entries.dtype.itemsize])
    item.add_new("LUTData", "US", entries.tolist())
    item.ModalityLUTType = "OD"
    return [item]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_table_is_entered_by_stored_values_and_inverted_after(tmp_path: Path, kind: type) -> None:
    entries = (np.arange(100) ** 2 // 40).astype(kind)  # not a line: the order matters
    stored = RAMP // 4
    tags = {"ModalityLUTSequence": table(entries, 10), "PixelPaddingValue": 0}
    shown = entries[np.clip(stored.astype(int) - 10, 0, 99)].astype(int)
    turned = np.iinfo(kind).max - shown
    for name, values in {"MONOCHROME2": shown, "MONOCHROME1": turned}.items():
        found = read_image(write(tmp_path / f"{name}.dcm", stored, PhotometricInterpretation=name, **tags))
        lowest = values[stored > 0].min()
        assert np.array_equal(found, np.where(stored == 0, lowest, values)), name


def test_inverted_values_keep_slope_and_intercept(tmp_path: Path) -> None:
    tags = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": -5}
    assert np.array_equal(read_image(write(tmp_path / "cr.dcm", **tags)), 2.0 * (65535 - RAMP.astype(int)) - 5)


def test_tags_without_a_value_say_nothing(tmp_path: Path) -> None:
    empty = {"RescaleSlope": "", "RescaleIntercept": "", "PixelPaddingValue": "", "NumberOfFrames": ""}
    assert np.array_equal(read_image(write(tmp_path / "a.dcm", **empty)), RAMP)


def test_padding_that_is_stated_unsigned_or_as_a_range(tmp_path: Path) -> None:
    stored = RAMP.astype(np.int16)
    stored[0], stored[1] = -2000, -1990
    path = write(tmp_path / "a.dcm", stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1980)
    assert (read_image(path)[:2] == stored[2:].min()).all()
    limits = pydicom.Dataset()
    limits.PixelPaddingValue = 63536  # -2000 as unsigned
    assert (_padding(stored, limits) == (stored == -2000)).all()


def test_padding_is_black_and_moves_no_range(tmp_path: Path) -> None:
    stored = RAMP.astype(np.int16) + 10
    stored[:2] = -2000
    found = read_image(write(tmp_path / "ct.dcm", stored, PixelPaddingValue=-2000, RescaleIntercept=-5, RescaleSlope=1))
    assert (found[:2] == stored[2:].min() - 5).all() and np.array_equal(found[2:], stored[2:] - 5.0)


@pytest.mark.parametrize("kind", ["RLELossless", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"])
def test_compressed_files(tmp_path: Path, kind: str) -> None:
    gdcm = pytest.importorskip("gdcm", reason="the extra dicom is not installed whole")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(write(tmp_path / "plain.dcm")))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "ct.dcm"))
    assert writer.Write()
    assert pydicom.dcmread(tmp_path / "ct.dcm").file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(read_image(tmp_path / "ct.dcm"), RAMP)


BAD = {
    "text.dcm": (lambda path: path.write_text("not DICOM"), "this is not a DICOM file"),
    "empty.dcm": (lambda path: path.write_bytes(b""), "this is not a DICOM file"),
    "report.dcm": (lambda path: write(path, PixelData=None), "holds no image"),
    "cine.dcm": (
        lambda path: write(path, NumberOfFrames=2, PixelData=2 * RAMP.tobytes()), "several frames; save each",
    ),
    "huge.dcm": (lambda path: write(path, Rows=60000, Columns=60000), "more than 100 million pixels"),
    "short.dcm": (lambda path: write(path, PixelData=RAMP.tobytes()[:-100]), "cannot be read"),
    "missing.dcm": (lambda path: None, "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_explained(tmp_path: Path, name: str) -> None:
    make, reason = BAD[name]
    make(tmp_path / name)
    with pytest.raises(InputError, match=reason) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "ct.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"pip install 'dcube-med\[dicom\]'"):
        read_image(path)


def test_a_header_that_nothing_can_read_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.dcm", "b/1.dcm"):
        write(tmp_path / "scans" / name)

    def damaged(*_: Any, **__: Any) -> None:
        raise NotImplementedError("value representation XX")

    monkeypatch.setattr(pydicom, "dcmread", damaged)
    assert [r.group for r in open_images(str(tmp_path / "scans")).records] == ["a/1.dcm", "b/1.dcm"]
    assert header_of(tmp_path / "scans/a/1.dcm") == (0, 0, False)
    with pytest.raises(InputError, match="damaged"):
        read_image(tmp_path / "scans/a/1.dcm")


def test_exports_beside_their_originals_are_not_taken_twice(tmp_path: Path) -> None:
    for name in ("a/1", "b/1"):
        write(tmp_path / "scans" / f"{name}.dcm")
        Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "scans" / f"{name}.png")
    with pytest.raises(InputError, match="DICOM files and other images side by side"):
        open_images(str(tmp_path / "scans"))


def test_the_header_tells_size_and_colour(tmp_path: Path) -> None:
    assert header_of(write(tmp_path / "a.dcm")) == (20, 16, False)
    assert header_of(write(tmp_path / "b.dcm", np.zeros((9, 7, 3), np.uint8))) == (7, 9, True)


def test_a_manifest_knows_better(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):  # as scanners name them: without an ending
        write(tmp_path / name)
    (tmp_path / "manifest.csv").write_text("path,label,patient_id\n1,a,x\n2,b,\n3,b,\n")
    images = open_images(str(tmp_path))
    groups = [record.group for record in images.records]
    assert groups[0] == "x" and groups[1] == groups[2] and groups[1] == "dicom-patient-1"
    assert np.array_equal(images.read(images.records[0]), RAMP)


def test_an_ending_of_a_manufacturer_says_nothing(tmp_path: Path) -> None:
    for name in ("1.IMA", "2.img", "3.bak"):
        write(tmp_path / name)
    (tmp_path / "manifest.csv").write_text("path,label\n1.IMA,a\n2.img,b\n3.bak,b\n")
    images = open_images(str(tmp_path))
    assert all(np.array_equal(images.read(record), RAMP) for record in images.records)
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "4.png")
    assert not is_dicom(tmp_path / "4.png") and not is_dicom(tmp_path / "absent.img")


def test_a_window_says_what_is_told_apart(tmp_path: Path) -> None:
    for name in ("a/1.dcm", "b/1.dcm"):
        write(tmp_path / "scans" / name, RescaleSlope=10, RescaleIntercept=-1000)
    images = open_images(str(tmp_path / "scans"))
    config = DataConfig(size=20, window=(0.0, 1000.0))
    store = build_store(images, config, tmp_path / "store")
    expected = np.clip((10.0 * RAMP - 1000 + 500) / 1000, 0, 1)
    np.testing.assert_allclose(store.floats([0])[0, 0, 2:18], expected, atol=1e-4)
    assert (store.normalisation.low, store.normalisation.high) == (-500, 500)
    assert store.key != build_store(images, DataConfig(size=20), tmp_path / "other").key
    assert Store.open(tmp_path / "store").key == store.key
    with pytest.raises(InputError, match="these images have 8"):
        for name in ("a/1.dcm", "b/1.dcm"):
            write(tmp_path / "photos" / name, RAMP.astype(np.uint8))
        build_store(open_images(str(tmp_path / "photos")), config, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_folders_of_dicom_files_are_predicted(tmp_path: Path) -> None:
    write(tmp_path / "new" / "series" / "1.dcm")
    assert list(list_images([tmp_path / "new"])) == [str(tmp_path / "new" / "series" / "1.dcm")]
