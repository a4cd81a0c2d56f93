"""From a file to raw pixels, and from raw pixels to one square size, channel count and range."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dcube.data import dicom
from dcube.errors import InputError

SUFFIXES = (*dicom.PICTURES, *dicom.SUFFIXES)
MAX_PIXELS = 100_000_000  # 100 Mpx; more is refused by the header alone, before memory is asked for
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_PHOTOMETRIC, _ORIENTATION = 262, 274  # tags of TIFF
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's conversion to grey
_SAMPLE_VALUES = 4096  # values per image that enter the percentiles
_SAMPLE_COLUMNS = 8  # that they are of at least, the first of which may be nothing but background


def read_image(path: str | Path) -> np.ndarray:
    """Raw pixels of a PNG, JPEG, TIFF, BMP or DICOM file: [H, W] or [H, W, 3], uint8, uint16 or float32.

    Transparency is composited on black, palettes are expanded, the camera's rotation tag is applied, negatives are
    turned. Raises InputError
    for whatever cannot be used: no image, truncated, over 100 Mpx, several pages, NaN or infinite values, and PNGs of
    16 bits in colour or with transparency, of which Pillow would keep 8.
    """
    path = Path(path)
    try:
        pixels = dicom.read_dicom(path, MAX_PIXELS) if dicom.is_dicom(path) else _decode(path)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: this is not a PNG, JPEG, TIFF or BMP image.") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: the image is damaged ({reason}).") from error
    return checked(pixels, path)


def header_of(path: Path) -> tuple[int, int, bool]:
    """Width and height in pixels, and whether the file has several channels, by its header; (0, 0, False) where that
    says nothing.
    """
    if dicom.is_dicom(path):
        return dicom.header_of(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as file:
                return (*file.size, len(file.getbands()) > 1 or file.mode == "P")
    except (OSError, Image.DecompressionBombError):
        return 0, 0, False


def _decode(path: Path) -> np.ndarray:
    # opened here: of a name Pillow maps the file, and shears TIFFs that are turned
    with warnings.catch_warnings(), open(path, "rb") as handle:
        warnings.simplefilter("ignore")  # the size warning of Pillow; our own limit follows
        try:
            file = Image.open(handle, formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise InputError(f"{path}: {_too_large(None)}") from error
        except UnidentifiedImageError:
            if path.suffix.lower() not in (".tif", ".tiff"):
                raise
            return _decode_tiff(path)  # 16-bit colour and other kinds that Pillow does not know
        with file:
            _check_size(file.size, path)
            if file.format == "TIFF" and getattr(file, "n_frames", 1) > 1:
                raise InputError(f"{path}: the file holds several pages; save each as an image of its own.")
            if file.format == "TIFF" and file.mode.startswith("RGB") and max(_tiff_bits(file)) > 8:
                return _decode_tiff(path)  # Pillow would drop half of the bits
            if file.format == "PNG" and file.mode not in _DEEP_MODES and ";16" in str(file.tile):
                raise InputError(f"{path}: a PNG of 16 bits with colour or transparency; save it as TIFF, or as grey.")
            file.load()
            image: Image.Image = ImageOps.exif_transpose(file)
            if file.mode in _DEEP_MODES:
                negative = file.format == "TIFF" and file.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
                return _positive(np.asarray(image), negative)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
            return np.asarray(image.convert("L" if file.mode in ("1", "L", "LA") else "RGB"))


def _positive(pixels: np.ndarray, negative: bool) -> np.ndarray:
    """Deep pixels with black at the lowest value; negative: white is there (MINISWHITE), as in scans of film."""
    if not negative:
        return pixels
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return np.iinfo(pixels.dtype).max - pixels
    return -pixels.astype(np.float64)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, ...] as the tag Orientation (1 .. 8) has them seen."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def _tiff_bits(file: Image.Image) -> tuple[int, ...]:
    return tuple(file.tag_v2.get(258, (8,)))  # type: ignore[attr-defined]  # BitsPerSample


def _decode_tiff(path: Path) -> np.ndarray:
    import tifffile

    try:
        file = tifffile.TiffFile(path)
    except tifffile.TiffFileError as error:
        raise UnidentifiedImageError(str(error)) from error
    with file:
        page = file.pages[0]
        _check_size((page.imagewidth, page.imagelength), path)  # type: ignore[union-attr]
        if len(file.pages) > 1:
            raise InputError(f"{path}: the file holds several pages; save each as an image of its own.")
        try:
            pixels = np.asarray(page.asarray())
        except ValueError as error:  # a compression that needs more than tifffile
            raise InputError(f"{path}: this kind of TIFF cannot be read ({error}); save it uncompressed.") from error
        if page.planarconfig == 2 and pixels.ndim == 3:  # type: ignore[union-attr]
            pixels = np.moveaxis(pixels, 0, -1)
        orientation = page.tags.valueof(_ORIENTATION, 1)  # type: ignore[union-attr]
        negative = page.photometric == 0  # type: ignore[union-attr]
    return np.ascontiguousarray(_upright(_positive(pixels, negative), orientation))


def _check_size(size: tuple[int, int], path: Path) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"{path}: {_too_large(size)}")


def _too_large(size: tuple[int, int] | None) -> str:
    given = f" ({size[0]} x {size[1]})" if size else ""
    return f"the image has more than {MAX_PIXELS // 1_000_000} million pixels{given}; make it smaller first."


def checked(pixels: np.ndarray, path: Path | str) -> np.ndarray:
    """Bring rare layouts to the documented ones, or say what is wrong."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 3 and pixels.shape[2] == 4 and pixels.dtype == np.uint16:
        alpha = pixels[:, :, 3:].astype(np.float32) / 65535
        pixels = (pixels[:, :, :3] * alpha).astype(np.uint16)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise InputError(f"{path}: expected a grey or colour image, found an array of shape {pixels.shape}.")
    if pixels.dtype.kind not in "uifb":
        raise InputError(f"{path}: pixels of the kind {pixels.dtype} cannot be used.")
    if pixels.size == 0:
        raise InputError(f"{path}: the image has no pixels.")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError(f"{path}: the image holds NaN or infinite values.")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return pixels.astype(np.uint16, copy=False)  # native byte order
    return pixels.astype(np.float32)


def is_colour(pixels: np.ndarray) -> bool:
    """Whether raw pixels hold colour: three channels that are not all equal."""
    if pixels.ndim == 2:
        return False
    first = pixels[:, :, 0]
    return not (np.array_equal(first, pixels[:, :, 1]) and np.array_equal(first, pixels[:, :, 2]))


@dataclass(frozen=True)
class Normalisation:
    """How raw pixels of one set become integers of one shape and range; travels with the weights."""

    size: int  # stored height and width
    channels: int  # 1 or 3
    aspect: str  # "pad" with black, "squash", or "crop" the centre
    bits: int  # 8: stored as uint8; 16: as uint16
    low: float  # of 16-bit and float images: the values that become 0 and 1
    high: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**values)

    @property
    def dtype(self) -> np.dtype:
        """uint8 or uint16."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """[H, W] or [H, W, 3] raw -> [C, S, S] integers. 8-bit values are divided by 255, others by the range."""
        planes = _planes(raw, self.channels)
        if raw.dtype != np.uint8:
            planes = [np.clip((plane.astype(np.float32) - self.low) / (self.high - self.low), 0, 1) for plane in planes]
        elif self.bits == 16:
            planes = [plane.astype(np.float32) / 255 for plane in planes]
        squares = np.stack([_square(plane, self.size, self.aspect) for plane in planes])
        if squares.dtype == self.dtype:
            return squares
        top = np.iinfo(self.dtype).max
        scale = 1.0 if squares.dtype == np.uint8 else float(top)
        return np.clip(np.rint(squares * scale), 0, top).astype(self.dtype)

    def floats(self, stored: np.ndarray) -> np.ndarray:
        """Stored integers -> float32 in [0, 1]."""
        values = stored.astype(np.float32)
        values /= np.float32(np.iinfo(self.dtype).max)
        return values


def _planes(raw: np.ndarray, channels: int) -> list[np.ndarray]:
    if raw.ndim == 2:
        return [raw] * channels
    if channels == 3:
        return [np.ascontiguousarray(raw[:, :, c]) for c in range(3)]
    if not is_colour(raw):
        return [np.ascontiguousarray(raw[:, :, 0])]
    grey = raw.astype(np.float32) @ _LUMINANCE
    return [np.rint(grey).astype(raw.dtype) if raw.dtype.kind == "u" else grey]


def _square(plane: np.ndarray, size: int, aspect: str) -> np.ndarray:
    """[H, W] uint8 or float32 -> [size, size] of the same kind, resized with a filter as wide as the step."""
    height, width = plane.shape
    if aspect == "crop" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        plane, height, width = plane[top : top + side, left : left + side], side, side
    target = (size, size)
    if aspect == "pad":
        scale = size / max(height, width)
        target = (max(1, round(height * scale)), max(1, round(width * scale)))
    if target != (height, width):
        image = Image.fromarray(np.ascontiguousarray(plane)).resize(target[::-1], Image.Resampling.BILINEAR)
        plane = np.asarray(image)
    if target == (size, size):
        return plane
    square = np.zeros((size, size), plane.dtype)
    top, left = (size - target[0]) // 2, (size - target[1]) // 2
    square[top : top + target[0], left : left + target[1]] = plane
    return square


def edges(window: tuple[float, float]) -> tuple[float, float]:
    """Lowest and highest value that a window shows, from its centre and width."""
    centre, width = window
    return centre - width / 2, centre + width / 2


Look = tuple[bool, np.ndarray | None]


def look(raw: np.ndarray) -> Look:
    """What one raw image tells about its set: is there colour, and a few thousand values unless it is 8-bit."""
    return is_colour(raw), None if raw.dtype == np.uint8 else _sampled(raw).astype(np.float32)


def _sampled(raw: np.ndarray) -> np.ndarray:
    """Some _SAMPLE_VALUES values, evenly spaced: of many columns, and of every colour."""
    values, row, colours = raw.ravel(), raw.size // len(raw), raw.size // (raw.shape[0] * raw.shape[1])
    step = max(1, values.size // _SAMPLE_VALUES)
    while row // math.gcd(step, row) < min(_SAMPLE_COLUMNS, row) or (colours > 1 and step % colours == 0):
        step += 1
    return values[::step]


def survey(
    looks: Iterable[Look], size: int, channels: int | str, aspect: str, window: tuple[float, float] | None = None
) -> Normalisation:
    """Choose channels, bits and range for a set from looks at some of its images.

    Channels "auto": 1 if all are grey, else 3. The range of 16-bit and float images is that of `window` (its centre and
    width); without one it goes from the 0.5 to the 99.5 percentile of their values.
    """
    seen = list(looks)
    deep = [values for _, values in seen if values is not None]
    low, high = 0.0, 255.0
    if deep:
        low, high = (float(value) for value in np.percentile(np.concatenate(deep), [0.5, 99.5]))
        if window:
            low, high = edges(window)
        high = high if high > low else low + 1.0
    count = (3 if any(colour for colour, _ in seen) else 1) if channels == "auto" else int(channels)
    return Normalisation(size, count, aspect, 16 if deep else 8, low, high)
