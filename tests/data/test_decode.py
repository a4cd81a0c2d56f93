"""Files of every kind become the documented pixels, or one plain sentence."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dcube.data.decode import Normalisation, look, read_image, survey
from dcube.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)


def bomb(path: Path, side: int = 20_000) -> None:
    """A PNG of a few bytes whose header promises side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_eight_bit_is_kept(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), pixels)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_kept(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(DEEP).save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, DEEP)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["contig", "separate"])
def test_sixteen_bit_colour_tiff_is_kept(tmp_path: Path, order: str, layout: str) -> None:
    pixels = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    written = pixels if layout == "contig" else np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", written, byteorder=order, photometric="rgb", planarconfig=layout)
    read = read_image(tmp_path / "a.tif")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.int32])
def test_other_tiffs_become_float(tmp_path: Path, kind: type) -> None:
    pixels = (RNG.normal(0, 500, (20, 30))).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    read = read_image(tmp_path / "a.tif")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, pixels, rtol=1e-6)


def test_jpeg_and_cmyk(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.jpg", quality=95)
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "grey.jpg").shape == (20, 30)
    assert read_image(tmp_path / "cmyk.jpg").shape == (20, 30, 3)


def test_alpha_is_composited_on_black_and_palettes_are_expanded(tmp_path: Path) -> None:
    half = np.dstack([COLOUR, np.full((20, 30), 128, np.uint8)])
    Image.fromarray(half).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), COLOUR * (128 / 255), atol=1)
    Image.fromarray(np.dstack([GREY, np.zeros_like(GREY)])).save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png").shape == (20, 30) and not read_image(tmp_path / "la.png").any()
    palette = Image.fromarray(GREY).convert("P")
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))


def test_camera_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(GREY)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").shape == (30, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "deep png", "tif", "lzw tif", "deep tif", "deep colour tif"])
def test_every_rotation_of_every_kind(tmp_path: Path, kind: str, orientation: int) -> None:
    """As `ImageOps.exif_transpose` turns an image that lies in memory."""
    pixels = np.stack([DEEP] * 3, axis=2) if "colour" in kind else DEEP if "deep" in kind else GREY
    path = tmp_path / f"a.{kind[-3:]}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    if "colour" in kind:
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, pixels, photometric="rgb", extratags=tags)
    else:
        Image.fromarray(pixels).save(path, exif=exif, compression="tiff_lzw" if "lzw" in kind else None)
    turned = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.swapaxes(0, 1), 6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).swapaxes(0, 1), 8: np.rot90(pixels),
    }  # fmt: skip
    np.testing.assert_array_equal(read_image(path), turned[orientation])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32])
def test_negatives_are_turned(tmp_path: Path, kind: type) -> None:
    pixels = GREY.astype(kind) if kind is np.uint8 else (DEEP // 16).astype(kind)
    if kind is np.int16:
        pixels[:5] = -32768  # what scanners pad with
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    found = read_image(tmp_path / "a.tif").astype(np.float64)
    assert np.corrcoef(found.ravel(), pixels.ravel())[0, 1] == pytest.approx(-1)


def write_truncated(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:200])


def write_nan(path: Path) -> None:
    pixels = np.ones((8, 8), np.float32)
    pixels[3, 3] = np.nan
    tifffile.imwrite(path, pixels)


def deep_png(path: Path, colour: int, channels: int) -> None:
    """A PNG of 16 bits per value, 8 x 8 pixels, of PNG's colour type `colour`."""
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 8, 8, 16, colour, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + b"\x0f\xff" * 8 * channels for _ in range(8)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", lines) + part(b"IEND", b""))


BAD = {
    "text.png": (lambda path: path.write_text("not an image"), "not a PNG, JPEG, TIFF or BMP"),
    "text.tif": (lambda path: path.write_text("not an image"), "not a PNG, JPEG, TIFF or BMP"),
    "empty.png": (lambda path: path.write_bytes(b""), "not a PNG, JPEG, TIFF or BMP"),
    "truncated.png": (write_truncated, "damaged"),
    "bomb.png": (bomb, "more than 100 million pixels"),
    "bigger-bomb.png": (lambda path: bomb(path, 2**20), "more than 100 million pixels"),
    "nan.tif": (write_nan, "NaN or infinite"),
    "pages.tif": (
        lambda path: tifffile.imwrite(path, np.zeros((3, 8, 8), np.uint8), photometric="minisblack"),
        "several pages",
    ),
    "colours.tif": (
        lambda path: tifffile.imwrite(path, np.zeros((2, 9, 8, 3), np.uint16), photometric="rgb"),
        "several pages",
    ),
    "deep-colour.png": (lambda path: deep_png(path, 2, 3), "16 bits with colour or transparency; save it as TIFF"),
    "deep-alpha.png": (lambda path: deep_png(path, 4, 2), "16 bits with colour or transparency; save it as TIFF"),
    "complex.tif": (lambda path: tifffile.imwrite(path, np.zeros((8, 8), np.complex64)), "complex64"),
    "missing.png": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_explained(tmp_path: Path, name: str) -> None:
    write, reason = BAD[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=reason) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def normalisation(raw: np.ndarray, size: int = 16, channels: int | str = "auto", aspect: str = "pad") -> Normalisation:
    return survey([look(raw)], size, channels, aspect)


def test_range_of_deep_images_is_the_sets_percentiles() -> None:
    ramp = np.linspace(-1000, 3000, 64 * 64, dtype=np.float32).reshape(64, 64)
    chosen = normalisation(ramp, 64)
    assert (chosen.bits, chosen.channels) == (16, 1)
    np.testing.assert_allclose([chosen.low, chosen.high], np.percentile(ramp, [0.5, 99.5]), rtol=1e-6)
    floats = chosen.floats(chosen.apply(ramp))[0]
    assert floats.dtype == np.float32 and floats.min() == 0 and floats.max() == 1
    inside = np.clip((ramp - chosen.low) / (chosen.high - chosen.low), 0, 1)
    np.testing.assert_allclose(floats, inside, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(4096, 40), (2048, 64), (1024, 1024), (7, 5), (512, 512)])
def test_a_deep_image_is_sampled_all_over(height: int, width: int) -> None:
    raw = np.zeros((height, width), np.uint16)
    raw[:, 1 : 1 + width // 2] = 1000  # the first column is background
    _, values = look(raw)
    assert values is not None and 0.3 < (values == 1000).mean() < 0.7
    assert len(values) <= 2 * 4096


def test_a_deep_image_is_sampled_in_every_colour() -> None:
    raw = np.zeros((512, 512, 3), np.uint16)
    raw[:, :, 1] = 1000
    _, values = look(raw)
    assert values is not None and 0.25 < (values == 1000).mean() < 0.42


def test_eight_bit_is_divided_by_255_also_in_a_deep_set() -> None:
    for chosen in (normalisation(GREY, 32), survey([look(GREY), look(DEEP)], 32, "auto", "squash")):
        plane = np.full((32, 32), 51, np.uint8)
        np.testing.assert_allclose(chosen.floats(chosen.apply(plane)), 0.2, atol=1e-6)


def test_constant_deep_image_does_not_divide_by_zero() -> None:
    flat = np.full((8, 8), 7, np.uint16)
    assert not normalisation(flat, 8).apply(flat).any()


def test_channels_follow_the_data_or_the_choice() -> None:
    equal = np.dstack([GREY] * 3)
    assert normalisation(equal).channels == 1
    assert normalisation(COLOUR).channels == 3
    assert normalisation(GREY, channels=3).apply(GREY).shape == (3, 16, 16)
    one = normalisation(COLOUR, 30, channels=1, aspect="squash").apply(COLOUR)
    np.testing.assert_allclose(one.mean(), np.asarray(Image.fromarray(COLOUR).convert("L")).mean(), atol=1)


def test_aspect_policies() -> None:
    wide = np.zeros((20, 40), np.uint8)
    wide[:, 10:30] = 200
    padded = normalisation(wide, 40, aspect="pad").apply(wide)[0]
    assert not padded[:10].any() and not padded[30:].any() and (padded[10:30, 10:30] == 200).all()
    squashed = normalisation(wide, 20, aspect="squash").apply(wide)[0]
    np.testing.assert_allclose(squashed.sum() * 2, wide.sum(), rtol=0.01)
    assert (normalisation(wide, 20, aspect="crop").apply(wide)[0] == 200).all()


def test_reduction_is_antialiased_and_equal_size_is_identity() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = normalisation(board, 16).apply(board)[0]
    assert abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 2
    np.testing.assert_array_equal(normalisation(board, 64).apply(board)[0], board)


def test_extreme_shapes_and_json_round_trip() -> None:
    line = np.full((1, 500), 9, np.uint8)
    chosen = normalisation(line, 16)
    assert chosen.apply(line).shape == (1, 16, 16)
    assert Normalisation.from_dict(chosen.to_dict()) == chosen
