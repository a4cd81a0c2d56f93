"""A DICOM file of any tags, for the tests of what is read from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

RAMP = np.arange(16 * 20, dtype=np.uint16).reshape(16, 20)


def write(path: Path, pixels: np.ndarray = RAMP, **tags: Any) -> Path:
    """A CT slice, or what `tags` make of it; a tag of None is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = pydicom.uid.generate_uid()
    bits = 8 * pixels.dtype.itemsize
    about = {
        "PatientID": "P1", "Rows": pixels.shape[0], "Columns": pixels.shape[1], "BitsAllocated": bits,
        "BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "SamplesPerPixel": 1 if pixels.ndim == 2 else 3, "PixelData": pixels.tobytes(),
        "PhotometricInterpretation": "MONOCHROME2" if pixels.ndim == 2 else "RGB",
    } | ({} if pixels.ndim == 2 else {"PlanarConfiguration": 0}) | tags  # fmt: skip
    for name, value in about.items():
        if value is not None:
            setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path
