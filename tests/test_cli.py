"""The command line: fast help, one plain sentence per error, files for predictions."""

import csv
import errno
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import dcube
from dcube.cli import app, main
from dcube.errors import DCubeError, InputError

VERBS = ["demo", "prepare", "fit", "diffuse", "select", "classify", "evaluate", "report", "predict", "recipes"]
VERBS += ["audit", "probe", "explain", "sample", "reproduce", "benchmark"]


@pytest.fixture
def fake_api(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for dcube.api, which would load torch."""
    fake = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "dcube.api", fake)
    monkeypatch.setattr(dcube, "api", fake, raising=False)
    return fake


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def raising(error: BaseException) -> Callable[..., None]:
    def fit(*args: Any, **kwargs: Any) -> None:
        raise error

    return fit


def test_help_and_import_take_less_than_a_second_and_load_no_torch() -> None:
    code = "import sys, dcube, dcube.cli; assert not {'torch', 'sklearn', 'matplotlib', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dcube.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_debug(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0 and "--debug" in result.stdout


def test_lazy_exports() -> None:
    assert {"fit", "load", "DCube", "GaussianitySelector", "__version__"} == set(dir(dcube))
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = dcube.fitt  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (InputError("The folder scans is empty; give one with images."), 2, "scans is empty"),
        (DCubeError("The loss is NaN at step 7."), 1, "step 7"),
        (OSError(errno.ENOSPC, "No space left on device", "store/pixels.bin"), 2, "No space left on the device while"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "No space left on the device; free"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), 2, "runs/a cannot be read or"),
        (ValueError("what\nnow"), 1, "run again with --debug"),
        (KeyboardInterrupt(), 130, "repeat the same command to continue where it stopped"),
    ],
)
def test_errors_are_one_sentence_with_the_right_status(
    fake_api: SimpleNamespace, error: BaseException, status: int, words: str
) -> None:
    fake_api.fit = raising(error)
    result = run("fit", "scans", "--out", "run")
    assert result.exit_code == status
    assert words in result.stderr and result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    assert "Traceback" in run("fit", "scans", "--out", "run", "--debug").stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device", "a.csv")])
def test_a_verb_that_begins_anew_does_not_promise_to_go_on(
    fake_api: SimpleNamespace, tmp_path: Path, error: BaseException
) -> None:
    fake_api.load = raising(error)
    (tmp_path / "scan.png").touch()
    for verb in (("predict",), ("explain", "--out", tmp_path / "pictures")):
        said = run(verb[0], "run", tmp_path / "scan.png", *verb[1:]).stderr
        assert "repeat the same command, which begins anew." in said and "continue" not in said
    for verb in (("audit",), ("prepare", "--out", tmp_path / "store")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"dcube.preparing.{verb[0]}", raising(error))
            assert "which begins anew." in run(verb[0], "scans", *verb[1:]).stderr


def test_full_disk_behind_another_error(fake_api: SimpleNamespace) -> None:
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    fake_api.fit = raising(error)
    assert run("fit", "scans", "--out", "run").exit_code == 2


def test_verbs_of_a_run_refuse_another_folder(tmp_path: Path) -> None:
    pytest.importorskip("dcube.stages")
    result = run("select", tmp_path)
    assert result.exit_code == 2 and "not a run folder" in result.stderr


def test_fit_passes_every_option_on(fake_api: SimpleNamespace, tmp_path: Path) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    fake_api.fit = lambda *args, **kwargs: calls.append((args, kwargs))
    values = ("--recipe", "demo", "--set", "a.b=1", "--set", "c=2", "--seed", 3, "--device", "cpu", "--folds", 4)
    flags = ("--max-minutes", 5, "--no-test", "--dry-run", "--restart", "--again", "--unlabelled", "more")
    result = run("fit", "scans", "--out", tmp_path, *values, *flags)
    assert result.exit_code == 0, result.output
    expected = {"recipe": "demo", "overrides": ["a.b=1", "c=2"], "seed": 3, "device": "cpu", "no_test": True}
    expected |= {"folds": 4, "max_minutes": 5.0, "dry_run": True, "restart": True, "again": True}
    expected["unlabelled"] = ["more"]
    assert calls == [(("scans", tmp_path), expected)]


def test_result_is_shown_beside_the_floors(fake_api: SimpleNamespace, tmp_path: Path) -> None:
    def figures(value: float) -> dict[str, dict[str, float]]:
        figure = {"value": value, "low": value - 0.1, "high": value + 0.1}
        return {"macro_f1": figure, "accuracy": figure}

    floors = {"majority": figures(0.2), "second_reader": figures(0.3)}
    metrics = {"split": "test", "n": 90, "groups": 24, "floors": floors} | figures(0.8)

    def fit(data: str, out: Path, **kwargs: Any) -> None:
        (out / "evaluation").mkdir(parents=True)
        (out / "evaluation" / "metrics.json").write_text(json.dumps(metrics))

    fake_api.fit = fit
    result = run("demo", "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert "0.800 (0.700 .. 0.900)" in result.stdout
    assert "majority       0.200" in result.stdout and "second_reader  0.300" in result.stdout


@pytest.fixture
def images(fake_api: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("dcube.cli.tell_unfinished", lambda run: None)
    for file in (tmp_path / "scans" / name for name in ("ann/1.png", "ann/2.png", "bob/1.PNG", "bob/note.txt")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def predict_files(paths: list[str]) -> list[dict[str, Any]]:
        rows = []
        for path in paths:
            p = 0.9 if path.endswith("1.png") else 0.3
            warning = "" if "ann" in path else "smaller than the training images"
            row = {"path": path, "predicted": "a" if p > 0.5 else "b", "confidence": max(p, 1 - p)}
            rows.append(row | {"p_a": p, "p_b": 1 - p, "warning": warning})
        return rows

    fake_api.load = lambda run, device=None: SimpleNamespace(predict_files=predict_files)
    return tmp_path / "scans"


def test_predict_takes_folders_and_writes_csv_and_json(images: Path, tmp_path: Path) -> None:
    assert run("predict", "run", images, images / "ann/1.png", "--out", tmp_path / "p.csv").exit_code == 0
    with open(tmp_path / "p.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [Path(row["path"]).name for row in rows] == ["1.png", "2.png", "1.PNG"]
    assert rows[0]["p_a"] == "0.900000"
    assert run("predict", "run", images, "--out", tmp_path / "p.json").exit_code == 0
    assert json.loads((tmp_path / "p.json").read_text())[0]["p_a"] == 0.9
    assert run("predict", "run", images / "ann/1.png").stdout.startswith("path,predicted,confidence,p_a,p_b,warning\n")


def test_predict_averages_the_probabilities_of_a_folder(images: Path, tmp_path: Path) -> None:
    run("predict", "run", images, "--by-group", "--out", tmp_path / "p.json")
    ann, bob = json.loads((tmp_path / "p.json").read_text())
    assert (ann["group"], ann["images"], ann["predicted"]) == (str(images / "ann"), 2, "a")
    assert ann["p_a"] == ann["confidence"] == pytest.approx(0.6) and ann["warning"] == ""
    assert bob["predicted"] == "b" and bob["warning"].startswith("of 1 of 1 images, such as: smaller")


def test_predict_by_the_group_of_a_manifest(images: Path, tmp_path: Path) -> None:
    manifest = images / "new.csv"
    rows = {
        "path,group_id\nann/1.png,x\nbob/1.PNG,x\nann/2.png,y\n": [("x", 2), ("y", 1)],
        "path,group_id,patient_id,\nann\\1.png,,x,\nbob/1.PNG,,x\nann/2.png,,y,\n": [("x", 2), ("y", 1)],
        "path,patient_id\nann/1.png,\nbob/1.PNG,\n": [("ann/1.png", 1), ("bob/1.PNG", 1)],
    }
    for text, expected in rows.items():
        manifest.write_text(text)
        result = run("predict", "run", manifest, "--by-group", "--out", tmp_path / "p.json")
        assert result.exit_code == 0, result.output
        assert [(row["group"], row["images"]) for row in json.loads((tmp_path / "p.json").read_text())] == expected


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.png", None, "no file or folder"),
        ("empty", "", "holds no images"),
        ("a.csv", "path\nann/1.png\n", "no column group_id"),
        ("b.csv", "file\nann/1.png\n", "no column 'path' (found: file); a manifest needs a column path"),
        ("c.csv", "path,group_id\nann/9.png,x\n", "names 1 missing file"),
        ("d.csv", "path,group_id\nann/1.png,x,y\n", "d.csv, line 2: more cells than the header"),
        ("e.csv", "path,group_id\n", "lists no images"),
    ],
)
def test_predict_refuses_bad_input(images: Path, name: str, content: str | None, words: str) -> None:
    if content:
        (images / name).write_text(content)
    elif content is not None:
        (images / name).mkdir()
    result = run("predict", "run", images / name, "--by-group")
    assert result.exit_code == 2 and words in result.stderr


def test_predict_refuses_another_format_before_any_work(images: Path) -> None:
    result = run("predict", "run", images, "--out", "p.xlsx")
    assert result.exit_code == 2 and ".csv or .json" in result.stderr


def test_predict_refuses_where_it_cannot_write_before_any_work(images: Path) -> None:
    (images / "file").touch()
    result = run("predict", "run", images, "--out", images / "file" / "p.csv")
    assert result.exit_code == 2 and "cannot be written" in result.stderr


def test_names_that_the_terminal_cannot_show(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "ann" / "\u0142.png").touch()
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "latin-1"))
    monkeypatch.setattr(sys, "argv", ["dcube", "predict", "run", str(images / "ann")])
    with pytest.raises(SystemExit) as ended:
        main()
    sys.stdout.flush()
    assert ended.value.code == 0 and "ann/\\u0142.png,b,0.7" in printed.getvalue().decode("latin-1")


def test_predict_does_not_write_over_what_it_reads(images: Path, tmp_path: Path) -> None:
    (images / "manifest.csv").write_text("path\nann/1.png\n")
    (images / "scan.json").write_text("an image by content")
    (tmp_path / "link.csv").symlink_to(images / "manifest.csv")
    for given, out in (
        (images / "manifest.csv", images / "ann" / ".." / "manifest.csv"), (images, images / "manifest.csv"),
        (images, tmp_path / "link.csv"), (images / "scan.json", images / "scan.json"),
    ):  # fmt: skip
        before = out.read_text()
        result = run("predict", "run", given, "--out", out)
        assert result.exit_code == 2 and "is one of the files to predict from" in result.stderr
        assert out.read_text() == before
    assert run("predict", "run", images, "--out", images / "new.csv").exit_code == 0
    assert run("predict", "run", images, "--out", images / "new.csv").exit_code == 0, "an earlier table makes way"


@pytest.mark.parametrize("verb", ["predict", "audit"])
def test_a_file_cannot_be_written_over_a_folder_or_into_a_closed_one(
    verb: str, images: Path, fake_api: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before any work: in a closed folder not even a file that is writable itself can be replaced."""
    fake_api.load = lambda *args, **kwargs: pytest.fail("work was done")
    monkeypatch.setattr("dcube.preparing.audit", fake_api.load)
    command = (verb, "run", images) if verb == "predict" else (verb, images)
    (tmp_path / "x.json").mkdir()
    result = run(*command, "--out", tmp_path / "x.json")
    assert result.exit_code == 2 and "x.json is a folder; give the name of a file" in result.stderr
    (closed := tmp_path / "closed").mkdir()
    (closed / "y.json").touch()
    monkeypatch.setattr("dcube.files.os.access", lambda place, mode: Path(place) != closed)
    result = run(*command, "--out", closed / "y.json")
    assert result.exit_code == 2 and f"y.json cannot be written: {closed} is not writable" in result.stderr


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="needs file names that are bytes")
def test_predict_refuses_a_name_that_no_table_could_hold(images: Path) -> None:
    (images / "ann" / os.fsdecode(b"f\xfcr.png")).touch()
    result = run("predict", "run", images)
    assert result.exit_code == 2 and "f\\udcfcr.png' is not valid UTF-8; rename" in result.stderr


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    for more in (("--again",), ("--split", "test")):
        result = run("evaluate", tmp_path, "--data", "other", *more)
        assert result.exit_code == 2 and "leave out --split and --again" in result.stderr
    result = run("fit", "phantom:", "--out", tmp_path / "run", "--no-test", "--again")
    assert result.exit_code == 2 and "use one of them" in result.stderr and not (tmp_path / "run").exists()
