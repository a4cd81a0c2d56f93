"""Clock, memory, operations and tables of the benchmark."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import fidelity, page, profile, scaling
from benchmarks.__main__ import main
from benchmarks.cases import all_cases
from benchmarks.images import labels_of, write_files
from benchmarks.machine import Flops, MatrixRates, describe, model_shapes, total_flops
from benchmarks.run import cells, report
from benchmarks.sizes import SIZES
from benchmarks.timing import PeakMemory, interleaved, summary
from dcube.data.decode import read_image
from dcube.diffusion.build import build_denoiser

CPU = torch.device("cpu")
STEPS = ("step1", "step2", "extract", "predict")
ROW: dict[str, Any] = {
    "name": "step1", "size": "paper", "reference_s": 6.0, "dcube_s": 3.0, "ratio": 2.0, "deviation": 1e-3,
    "share_of_matrix_rate": 0.81, "share_of_best_product": 0.7, "ratio_at_matrix_rate": 2.4, "peak_mib": None,
    "dtype": "bf16",
    "reference_spread_s": [5.0, 7.0], "dcube_spread_s": [2.0, 4.0],
}  # fmt: skip


def test_sides_take_turns_and_parts_count_by_their_weight() -> None:
    turns: list[str] = []

    def side(name: str, duration: float) -> Any:
        return lambda: (turns.append(name), time.sleep(duration))

    slow, fast = interleaved([(side("a", 0.02), 1.0)], [(side("b", 0.0), 1.0), (side("c", 0.01), 0.5)], 3, CPU)
    assert turns == ["a", "b", "c"] * 3
    assert summary(slow)[0] == pytest.approx(0.02, abs=0.01) and summary(fast)[0] == pytest.approx(0.005, abs=0.004)


def test_peak_memory_sees_what_was_held_and_given_back() -> None:
    with PeakMemory(CPU) as peak:
        held = torch.ones(64, 2**18)  # 64 MiB
        del held
    if peak.mib is None:
        pytest.skip("this system keeps no peak that can be set back")
    assert 60 < peak.mib < 80


@pytest.mark.parametrize("inference", [False, True])
def test_operations_are_those_torch_counts(inference: bool) -> None:
    linear, conv = torch.nn.Linear(8, 16), torch.nn.Conv2d(3, 4, 3, padding=1)
    x, image, q = torch.randn(5, 8), torch.randn(2, 3, 9, 9), torch.randn(2, 3, 7, 4)

    def call() -> None:
        with torch.inference_mode(inference):
            out = linear(x).sum() + conv(image).sum() + F.scaled_dot_product_attention(q, q, q).sum()
            if not inference:
                out.backward()

    with Flops() as counter:
        call()
    assert sum(counter.by_dtype.values()) == total_flops(call)
    trained, attention = 2 * 5 * 8 * 16 + 2 * 2 * 81 * 4 * 27, 2 * 2 * 2 * 3 * 7 * 7 * 4
    assert counter.by_dtype == {torch.float32: (1 if inference else 2) * trained + attention}


@pytest.mark.parametrize(("groups", "needs_input"), [(1, True), (6, True), (3, False)])
def test_operations_of_a_convolution_and_its_gradients(groups: int, needs_input: bool) -> None:
    conv = torch.nn.Conv2d(6, 12, 3, padding=1, groups=groups)
    image = torch.randn(2, 6, 5, 5, requires_grad=needs_input)
    with Flops() as counter:
        conv(image).sum().backward()
    forward = 2 * (2 * 12 * 25) * (6 // groups * 9)
    assert counter.by_dtype == {torch.float32: forward * (3 if needs_input else 2)}


def test_operations_are_told_apart_by_dtype() -> None:
    x, w = torch.randn(4, 8), torch.randn(8, 2)
    with Flops() as counter:
        torch.mm(x, w)
        with torch.autocast("cpu", torch.bfloat16):
            torch.mm(x, w)
    assert counter.by_dtype == {torch.float32: 128, torch.bfloat16: 128}


def test_matrix_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = MatrixRates([(64, 64, 64), (128, 128, 128)], CPU)
    assert rates.measure(torch.float32) > 1e6
    assert rates.best[torch.float32] >= rates.last[torch.float32]  # no product is slower than all together
    rates.best[torch.float32] = 1e15
    assert rates.seconds_at_best({torch.float32: 2e15}) == 2.0
    monkeypatch.setattr(rates, "measure", lambda dtype: 1e15)
    assert rates.seconds_for({torch.float32: 2e15}) == 2.0


def test_shapes_of_the_models() -> None:
    paper = SIZES["paper"].experiment().diffusion
    assert model_shapes(paper) == [(4112, 512, 1536), (4112, 512, 2048), (4112, 2048, 512)]
    rows = [shape[0] for shape in model_shapes(SIZES["small"].experiment().diffusion)]
    assert all(a == 4 * b for a, b in zip(rows, rows[1:], strict=False))
    assert describe(CPU)["threads"] == torch.get_num_threads()


def test_every_size_has_the_cases_of_the_contract() -> None:
    for size in SIZES.values():
        names = [case.name for case in all_cases(size)]
        kinds = ("loading", "step1", "step2", "extract", "select", "sample", "predict")
        assert {name.split("-")[0] for name in names} == set(kinds) and len(set(names)) == len(names)
    paper = {case.name for case in all_cases(SIZES["paper"])}
    assert {"sample-16", "predict-1", "predict-256", "step2-resnet50-128", "step2-resnet50-256-cycle-quarter"} < paper
    assert {"step2-efficientnet_lite0-256-cycle-whole", "step2-efficientnet_lite0-128"} < paper


def test_files_of_the_loading_case(tmp_path: Path) -> None:
    paths, labels = write_files(tmp_path, 40, 32)
    assert labels.count("opacity") == 2 and labels_of(60, rarest=0.05).count("opacity") == 3
    pixels = read_image(paths[0])
    assert pixels.shape == (32, 32) and pixels.dtype == np.uint8 and pixels.std() > 5


def test_the_whole_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    monkeypatch.setattr("sys.argv", ["benchmarks", "--size", "tiny", "--repeats", "1", "--json", str(file)])
    main()
    found, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert found["machine"]["matrix_gflops"]["tiny"]["fp32"] > 0
    contract = ("name", "size", "reference_s", "dcube_s", "ratio", "share_of_matrix_rate", "peak_mib", "deviation")
    for row in found["cases"]:
        assert set(contract) <= set(row) and row["name"] in printed
        assert row["ratio"] == row["reference_s"] / row["dcube_s"] and row["deviation"] < 0.05
        assert row["name"] == "loading" or 0 < row["share_of_matrix_rate"] < 1.5
    assert [row["name"] for row in found["cases"]] == [case.name for case in all_cases(SIZES["tiny"])]
    assert "step1" in page.table(found)


def test_only_and_what_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "--size", "tiny", "--repeats", "1", "--only", "extr"])
    main()
    assert "extract" in (out := capsys.readouterr().out) and "step1" not in out
    monkeypatch.setattr("sys.argv", ["benchmarks", "--size", "tiny", "--only", "stepp"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2 and "No case begins with 'stepp'" in capsys.readouterr().err


def test_table_is_aligned() -> None:
    assert cells(ROW)[4:10] == ("2.00", "1.25..3.50", "2.40", "81%", "70%", "-")
    lines = report([ROW, ROW | {"name": "step2-a-long-name"}]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scaling.json"
    command = ["scaling", "--size", "tiny", "--repeats", "1", "--only", "blocks", "--json", str(file)]
    monkeypatch.setattr("sys.argv", command)
    scaling.main()
    found = json.loads(file.read_text())
    rows = found["rows"]
    assert [row["value"] for row in rows] == [1, 2, 4] and all(row[f"{step}_s"] > 0 for row in rows for step in STEPS)
    assert rows[0]["cache_mb"] < rows[1]["cache_mb"] < rows[2]["cache_mb"]
    assert "cache_mb" in capsys.readouterr().out and "cache_mb" in page.table(found)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::convolution_backward", "convolution"), ("aten::mkldnn_convolution", "convolution"),
        ("aten::addmm", "matrix product"), ("aten::baddbmm", "batched product"),
        ("aten::native_batch_norm", "normalisation"),
        ("aten::_fused_adamw_", "optimiser, EMA"), ("aten::_foreach_norm", "optimiser, EMA"),
        ("aten::copy_", "copies, casts, joins"), ("aten::gelu", "other arithmetic"),
    ],
)  # fmt: skip
def test_kinds_of_operations(operation: str, kind: str) -> None:
    assert profile.kind_of(operation) == kind


def test_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "profile.json"
    monkeypatch.setattr("sys.argv", ["profile", "--size", "tiny", "--only", "step1", "--json", str(file)])
    profile.main()
    [row] = json.loads(file.read_text())["profile"]
    assert sum(row["share"].values()) == pytest.approx(1) and row["share"]["convolution"] > 0 < row["seconds"]
    assert "step1" in page.table(json.loads(file.read_text()))


@pytest.mark.parametrize("name", SIZES)
def test_three_sizes_per_axis_that_the_models_take(name: str) -> None:
    held: dict[str, list[int]] = {}
    for axis, value, size, classes in scaling.variants(SIZES[name]):
        held.setdefault(axis, []).append(value)
        experiment = size.experiment()
        with torch.device("meta"):  # the structure alone
            model = build_denoiser(experiment.diffusion, 1, classes)
        assert max(size.blocks) < len(model.blocks) and (axis != "pixels" or experiment.diffusion.image_size == value)
    assert tuple(held) == scaling.AXES
    assert all(len(values) == 3 and values == sorted(set(values)) for values in held.values())


def test_page_holds_the_figures_of_the_files(tmp_path: Path) -> None:
    assert "no measurement" in page.section(tmp_path)
    facts: dict[str, Any] = {"gpu": None, "cpu": "a CPU", "cores": 2, "threads": 2, "torch": "2"}
    facts["matrix_gflops"] = {"small": {"bf16": 9}}
    (tmp_path / "cpu.json").write_text(json.dumps({"machine": facts, "cases": [ROW | {"note": "as it is"}]}))
    text = page.section(tmp_path)
    assert "### cpu" in text and "| step1 | paper | 6 | 3 | 2.00 |" in text and "- paper step1: as it is." in text
    assert "bf16 9" in text


def test_bounds_on_the_page() -> None:
    share = {kind: 0.1 for kind, _ in profile.KINDS} | {
        "convolution": 0.3, "matrix product": 0.15, "batched product": 0.05,
    }  # fmt: skip
    profiled = {"name": "step1", "size": "paper", "seconds": 1.0, "share": share}
    files = {"a": {"cases": [ROW]}, "b": {"profile": [profiled, profiled | {"name": "step9"}]}}
    text = page.limits(files)
    assert "| step1 | paper | 2.00 | 50% | 4.0 | 81% | 62% |" in text and "step9" not in text
    assert page.limits({"a": {"cases": [ROW]}}) == ""


def test_distances_on_the_page() -> None:
    found = {
        "n": 8, "sampler": "sde", "dtype": "fp32", "image_size": 32, "extractor": "a CNN", "a_to_b": 2.0, "bound": 2.1,
        "fast": {"20": {"to_a": 1.5, "to_b": 1.6, "within": True}, "5": {"to_a": 9.0, "to_b": 9.0, "within": False}},
    }  # fmt: skip
    facts = {"gpu": None, "cpu": "a CPU", "cores": 2, "threads": 2, "torch": "2"}
    text = page.table({"machine": facts, "fidelity": fidelity.rows_of(found)})
    assert "| sde | 20 | fp32 | 32 | 8 | 1.50 | 2.00 | 2.10 | yes |" in text and "features of a CNN." in text
    assert "| 9.00 | 2.00 | 2.10 | no |" in text


def test_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["page", "--check"])
    page.main()
