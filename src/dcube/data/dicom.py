"""DICOM files: one image each, in the units that the file states, and the patient or study they are of.

Needs the extra "dicom" (pydicom, and GDCM for the compressions that scanners use).
"""

import importlib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcube.errors import InputError

SUFFIXES = (".dcm", ".dicom")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAGIC = b"DICM"  # behind a preamble of 128 bytes
RESCALE = ("RescaleSlope", "RescaleIntercept")
FRAMES = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")  # of "enhanced" files, in this order


def is_dicom(path: Path) -> bool:
    """By the ending of its name; by its first bytes where that says nothing."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.suffix.lower() in PICTURES or not path.is_file():
        return False
    try:
        with open(path, "rb") as handle:
            return handle.read(132)[128:] == MAGIC
    except OSError:  # told where its pixels are read
        return False


def read_dicom(path: Path, most: int) -> np.ndarray:
    """Pixels [H, W] uint8 or float32, or [H, W, 3] uint8 or uint16, of a file with one image.

    Grey values are those of the modality (its rescale slope and intercept, of the file or of its only frame, or its
    table applied: Hounsfield units of a CT), without a window; inverted where the file says that 0 is white
    (MONOCHROME1); what it marks as padding becomes the lowest of the other values. InputError for a file without an
    image, with several frames or more than `most` pixels, in a compression that nothing here reads, or where the extra
    is not installed.
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
    """[H, W] uint8 of files with 8 bits and no other units, else float32."""
    signed, bits = bool(file.PixelRepresentation), int(file.BitsStored)
    _find_rescale(file)
    inverted, table = file.PhotometricInterpretation == "MONOCHROME1", file.get("ModalityLUTSequence")
    padding, values = _padding(stored, file), stored.astype(np.int64) if inverted else stored
    if inverted and not table:
        values = (-1 if signed else 2**bits - 1) - values  # lowest and highest change places
    values = pixels.apply_modality_lut(values, file)
    if inverted and table:  # it is entered by stored values, and its own are what is shown
        values = 2 ** int(table[0].LUTDescriptor[2]) - 1 - values
    if padding.any() and not padding.all():
        values = np.where(padding, values[~padding].min(), values)
    units = "ModalityLUTSequence" in file or (file.get("RescaleSlope", 1), file.get("RescaleIntercept", 0)) != (1, 0)
    return values.astype(np.float32 if units or signed or bits != 8 else np.uint8)


def _find_rescale(file: Any) -> None:
    """Leave slope and intercept in the file where both have a value: its own, else those of its only frame."""
    for name in RESCALE:
        if name in file and file[name].is_empty:
            del file[name]
    for place in FRAMES:
        stated = _first(_first(file, place), "PixelValueTransformationSequence")
        values = [stated.get(name) for name in RESCALE]
        if not all(name in file for name in RESCALE) and all(value not in (None, "") for value in values):
            file.RescaleSlope, file.RescaleIntercept = values


def _first(dataset: Any, name: str) -> Any:
    """The first item of a sequence, an empty one where there is none."""
    items = dataset.get(name)
    return items[0] if items else {}


def _padding(stored: np.ndarray, file: Any) -> np.ndarray:
    """[H, W] bool: what the file says is no picture."""
    values = [file.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    ends = [np.array(int(v)).astype(stored.dtype) for v in values if v is not None]  # some state signed ones unsigned
    if not ends or values[0] is None:
        return np.zeros(stored.shape, bool)
    return (stored >= min(ends)) & (stored <= max(ends))


def groups_of(name: str, paths: Sequence[Path]) -> list[str | None]:
    """The group of each DICOM file [N]: its patient; where it names none its study (its series, where it names no study
    either), which is of the patient whom another file of it names; None where it names nothing of these.

    Groups are numbered, so that no identity is written. Files of the set `name` that name no patient are told.
    """
    both = [_patient_and_study(path) for path in paths]
    by_patient = _numbered("patient", [patient for patient, _ in both])
    by_study: dict[str | None, str] = {study: by_patient[patient] for patient, study in both if patient and study}
    by_study |= _numbered("study", [study for patient, study in both if not patient and study not in by_study])
    groups = [by_patient.get(patient) or by_study.get(study) for patient, study in both]
    readable = [(patient, group) for (patient, study), group in zip(both, groups, strict=True) if study is not None]
    if nameless := [group for patient, group in readable if not patient]:
        alone = nameless.count(None)
        rest = f", but {alone} name no study either and are each taken for a patient" if alone else ""
        print(
            f"{name}: {len(nameless)} of {len(paths)} DICOM files name no patient; slices of one study are kept"
            f" together{rest}; say who is who by patient_id in a manifest"
        )
    return groups


def _numbered(kind: str, names: Iterable[str | None]) -> dict[str | None, str]:
    """A group for each name that is not blank, by the order in which they come."""
    return {name: f"dicom-{kind}-{number}" for number, name in enumerate(filter(None, dict.fromkeys(names)), 1)}


def _patient_and_study(path: Path) -> tuple[str | None, str | None]:
    """PatientID and study (or series) of a file, for the eyes of this process alone; "" where it names none, None where
    it cannot be read.
    """
    tags = "PatientID", "StudyInstanceUID", "SeriesInstanceUID"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anonymisers write UIDs that are none
        header = _header(path, *tags)
    if header is None:
        return None, None
    patient, study, series = (str(header.get(tag) or "").strip() for tag in tags)
    return patient, study or series


def header_of(path: Path) -> tuple[int, int, bool]:
    """Width, height, and whether there are several channels; (0, 0, False) where the header does not say."""
    file = _header(path, "Rows", "Columns", "SamplesPerPixel")
    if file is None:
        return 0, 0, False
    return int(file.get("Columns") or 0), int(file.get("Rows") or 0), int(file.get("SamplesPerPixel") or 1) > 1


def _header(path: Path, *tags: str) -> Any:
    """Some tags of a file, None where they cannot be read: that is told when its pixels are."""
    library = _library("pydicom", path)
    try:
        file = library.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
        for tag in tags:
            file.get(tag)
    except Exception:  # a damaged header raises nearly anything
        return None
    return file


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{path}: DICOM needs an extra; install it by pip install 'dcube-med[dicom]'.") from error
