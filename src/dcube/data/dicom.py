"""DICOM files: one image each, in the units that the file states, and the patient they are of.

Needs the extra "dicom" (pydicom, and GDCM for the compressions that scanners use).
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from dcube.errors import InputError
from dcube.files import digest

SUFFIXES = (".dcm", ".dicom")
MAGIC = b"DICM"  # behind a preamble of 128 bytes
PATIENT_DIGITS = 12  # of the digest that stands for a patient's identity


def is_dicom(path: Path) -> bool:
    """By the ending of its name; by its first bytes where that says nothing."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.suffix[1:].isalpha() or not path.is_file():
        return False
    with open(path, "rb") as handle:
        return handle.read(132)[128:] == MAGIC


def read_dicom(path: Path, most: int) -> np.ndarray:
    """Pixels [H, W] uint8 or float32, or [H, W, 3] uint8 or uint16, of a file with one image.

    Grey values are those of the modality (its rescale slope and intercept or table applied: Hounsfield units of a CT),
    without a window; inverted where the file says that 0 is white (MONOCHROME1); what it marks as padding becomes the
    lowest of the other values. InputError for a file without an image, with several frames or more than `most` pixels,
    in a compression that nothing here reads, or where the extra is not installed.
    """
    library = _library("pydicom", path)
    try:
        file = library.dcmread(path)
    except library.errors.InvalidDicomError as error:
        raise InputError(f"{path}: this is not a DICOM file.") from error
    if "PixelData" not in file:
        raise InputError(f"{path}: this DICOM file holds no image.")
    if int(file.get("NumberOfFrames") or 1) > 1:
        raise InputError(f"{path}: the file holds several frames; save each as an image of its own.")
    if int(file.Rows) * int(file.Columns) > most:
        raise InputError(f"{path}: the image has more than {most // 1_000_000} million pixels; make it smaller first.")
    pixels = _library("pydicom.pixels", path)
    try:
        stored = pixels.pixel_array(file)
    except Exception as error:  # whatever a decoder raises
        kind = getattr(file.file_meta.get("TransferSyntaxUID"), "name", "unknown")
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: pixels of the kind '{kind}' cannot be read ({reason}).") from error
    if file.PhotometricInterpretation == "PALETTE COLOR":
        stored = pixels.apply_color_lut(stored, file)
    return stored if stored.ndim == 3 else _grey(stored, file, pixels)


def _grey(stored: np.ndarray, file: Any, pixels: Any) -> np.ndarray:
    """[H, W] uint8 where nothing but that is in the file, else float32."""
    signed, bits = bool(file.PixelRepresentation), int(file.BitsStored)
    padding = stored == int(file.PixelPaddingValue) if "PixelPaddingValue" in file else np.zeros(stored.shape, bool)
    values = stored
    if file.PhotometricInterpretation == "MONOCHROME1":
        values = (-1 if signed else 2**bits - 1) - stored.astype(np.int64)  # lowest and highest change places
    values = pixels.apply_modality_lut(values, file)
    if padding.any() and not padding.all():
        values = np.where(padding, values[~padding].min(), values)
    plain = bits == 8 and not signed and ((values >= 0) & (values <= 255) & (values == np.rint(values))).all()
    return values.astype(np.uint8 if plain else np.float32)


def patient_of(path: Path) -> str | None:
    """What stands for the patient of a file, a digest of its PatientID: the identity itself goes nowhere. None where
    the file has none, or cannot be read.
    """
    library = _library("pydicom", path)
    try:
        file = library.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
    except (library.errors.InvalidDicomError, OSError):  # found, and told, when its pixels are read
        return None
    identity = str(file.get("PatientID") or "").strip()
    return f"patient-{digest(identity)[:PATIENT_DIGITS]}" if identity else None


def header_of(path: Path) -> tuple[int, int, bool]:
    """Width, height, and whether there are several channels; (0, 0, False) where the header does not say."""
    library = _library("pydicom", path)
    try:
        file = library.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns", "SamplesPerPixel"])
    except (library.errors.InvalidDicomError, OSError):
        return 0, 0, False
    return int(file.get("Columns") or 0), int(file.get("Rows") or 0), int(file.get("SamplesPerPixel") or 1) > 1


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{path}: DICOM needs an extra; install it by pip install 'dcube-med[dicom]'.") from error
