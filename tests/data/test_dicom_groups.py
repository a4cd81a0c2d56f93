"""Which DICOM files belong together: those of a patient, or of a study where no patient is named."""

import warnings
from pathlib import Path

import pytest

from dcube.data.sources import open_images
from dcube.errors import InputError

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from dicoms import write  # noqa: E402


def test_images_are_grouped_by_patient_and_nobody_is_named(tmp_path: Path) -> None:
    for number, patient in enumerate(("Ann", "Ann", "Bob", None)):
        write(tmp_path / "scans" / ("ill" if number % 2 else "well") / f"{number}.dcm", PatientID=patient)
    records = {record.path: record for record in open_images(str(tmp_path / "scans")).records}
    groups = [records[f"{'ill' if n % 2 else 'well'}/{n}.dcm"].group for n in range(4)]
    assert groups[0] == groups[1] != groups[2] and groups[3] == "ill/3.dcm"
    assert {groups[0], groups[2]} == {"dicom-patient-1", "dicom-patient-2"}, "no identity, nor anything made of one"


def groups(root: Path, *people: tuple[str | None, str | None, str | None]) -> list[str]:
    """The groups of slices of these (PatientID, StudyInstanceUID, SeriesInstanceUID); half are ill, half are well."""
    for number, (patient, study, series) in enumerate(people):
        tags = {"PatientID": patient, "StudyInstanceUID": study, "SeriesInstanceUID": series}
        write(root / ("ill" if number < len(people) / 2 else "well") / f"{number}.dcm", **tags)
    return [record.group for record in open_images(str(root)).records]


def test_slices_of_one_study_stay_together_where_no_patient_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever comes between them; what has no study goes by its series, and all of it is told."""
    found = groups(
        tmp_path / "scans", ("", "1.2", "1.2.1"), (None, "1.3", "1.3.1"), (" ", "1.2", "1.2.2"), ("", "1.3", "1.3.1"),
        ("", None, "1.4.1"), ("", "", "1.4.1"), ("", None, None), ("", "", ""),
    )  # fmt: skip
    assert found[0] == found[2] and found[1] == found[3] and found[4] == found[5]
    assert set(found[:6]) == {f"dicom-study-{number}" for number in (1, 2, 3)}
    assert found[6:] == ["well/6.dcm", "well/7.dcm"]
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'scans'}: 8 of 8 DICOM files name no patient; slices of one study are kept together, but 2 name"
        " no study either and are each taken for a patient; say who is who by patient_id in a manifest"
    ]


def test_patients_are_numbered_as_if_all_were_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file without a patient is of the one whom its study names elsewhere; the others say nothing."""
    named = [("Ann", "1.1", None), ("Bob", "1.2", None), ("Ann", "1.3", None)]
    assert groups(tmp_path / "all", *named) == ["dicom-patient-1", "dicom-patient-2", "dicom-patient-1"]
    assert capsys.readouterr().out == ""
    found = groups(tmp_path / "some", ("", "1.2", None), ("", "1.9", None), *named, ("", "1.9", None))
    assert found[2:5] == ["dicom-patient-1", "dicom-patient-2", "dicom-patient-1"]
    assert found[0] == "dicom-patient-2" and found[1] == found[5] == "dicom-study-1"
    assert "3 of 6 DICOM files name no patient; slices of one study are kept together; say" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_is_not_said_to_be_nameless(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans" / "well").mkdir(parents=True)
    (tmp_path / "scans" / "well" / "9.dcm").write_bytes(b"damaged")
    assert groups(tmp_path / "scans", ("Ann", "1.1", None), ("Bob", "1.2", None))[-1] == "well/9.dcm"
    assert capsys.readouterr().out == ""


def test_uids_that_are_none_part_the_slices_without_a_word(tmp_path: Path) -> None:
    """Anonymisers write them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups(tmp_path / "scans", ("", "scan-a", None), ("", "scan-b", None), ("", "scan-a", None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [record.group for record in open_images(str(tmp_path / "scans")).records]
    assert found == ["dicom-study-1", "dicom-study-2", "dicom-study-1"]


def test_a_patient_in_two_splits_is_named_by_files(tmp_path: Path) -> None:
    """The number of the patient stands nowhere outside of the program."""
    for name, patient in (("train/a/1", "P1"), ("train/b/1", "P2"), ("train/b/2", "P3"), ("test/b/3", "P2")):
        write(tmp_path / "scans" / f"{name}.dcm", PatientID=patient)
    with pytest.raises(InputError, match="'dicom-patient-") as caught:
        open_images(str(tmp_path / "scans"))
    assert "train/b/1.dcm" in str(caught.value) and "test/b/3.dcm" in str(caught.value)
