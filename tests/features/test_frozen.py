"""Taps of the frozen model, and the cache of its features."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from dcube.data.dataset import ImageData
from dcube.features.frozen import CPU_VALUES, FeatureCache, FrozenFeatures, frozen_dtype
from dcube.features.taps import block_maps, fixed_noise
from tiny import tiny_diffusion, tiny_experiment

T = (2, 9)


def live(frozen: FrozenFeatures, data: ImageData, row: int, flip: bool, t: int) -> list[torch.Tensor]:
    image = data.images(np.array([row]), 8)
    return frozen(image.flip(-1) if flip else image, torch.tensor([t]))


@pytest.mark.parametrize("flips", [True, False])
def test_the_cache_equals_live_features(data: ImageData, tmp_path: Path, flips: bool) -> None:
    frozen = FrozenFeatures(tiny_diffusion(), [0, 2, 4], "clean", grid=4)
    indices = data.indices("train")
    cache = FeatureCache(frozen, data, indices, T, flips, tmp_path)
    assert frozen.shapes == [(8, 4, 4), (16, 4, 4), (8, 4, 4)]
    rows, flipped = np.array([3, 0, 3, 16]), np.array([False, flips, flips, False])
    maps = cache.maps(rows, flipped, np.array([0, 1, 0, 1]))
    assert all(m.dtype == torch.float16 for m in maps)
    for i, (row, at) in enumerate(zip(rows, (0, 1, 0, 1), strict=True)):
        for cached, exact in zip(maps, live(frozen, data, indices[row], bool(flipped[i]), T[at]), strict=True):
            torch.testing.assert_close(cached[i].float(), exact[0], rtol=1e-3, atol=1e-3)
    if flips:
        assert not torch.allclose(maps[0][0], maps[0][2], atol=1e-2)
    gigabytes = FeatureCache.gigabytes(frozen, len(indices), len(T), flips)
    assert gigabytes == next(tmp_path.glob("*.f16")).stat().st_size / 1e9


def test_a_cache_is_made_once_and_belongs_to_its_model(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cache(seed: int = 0, block: int = 1, mode: str = "clean", timesteps: tuple[int, ...] = T) -> None:
        frozen = FrozenFeatures(tiny_diffusion(seed), [block], mode, 4)
        FeatureCache(frozen, data, data.indices("train"), timesteps, True, tmp_path)

    variants: list[dict[str, Any]] = [{}, {"seed": 1}, {"block": 2}, {"mode": "noised"}, {"timesteps": (2, 8)}]
    for files, changed in enumerate(variants, 1):
        cache(**changed)
        assert len(list(tmp_path.glob("*.f16"))) == files, changed
    monkeypatch.setattr(FeatureCache, "_fill", lambda *_: pytest.fail("filled again"))
    cache()


def test_a_cache_is_complete_or_absent(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, calls = FrozenFeatures(tiny_diffusion(), [1], "clean", 4), []

    def fails(*arguments: object) -> list[torch.Tensor]:
        calls.append(1)
        raise RuntimeError("killed")

    (tmp_path / ".features-0.99.tmp.f16").write_bytes(b"left by a killed process")
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr("dcube.features.frozen.block_maps", fails)
        FeatureCache(frozen, data, data.indices("train"), T, True, tmp_path)
    assert calls and not [file for file in tmp_path.iterdir() if file.suffix == ".f16"]


def test_of_two_processes_one_makes_the_cache(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other waits for it: it neither fills one of its own nor removes what the first has begun."""
    frozen, fill, begun, filled = FrozenFeatures(tiny_diffusion(), [1], "clean", 4), FeatureCache._fill, Event(), []

    def slowly(cache: FeatureCache, path: Path, *rest: Any) -> None:
        path.write_bytes(b"begun")
        begun.set()
        time.sleep(0.3)  # in which the other arrives
        assert path.exists()
        filled.append(path)
        fill(cache, path, *rest)

    def make() -> FeatureCache:
        return FeatureCache(frozen, data, data.indices("train"), T, True, tmp_path)

    monkeypatch.setattr(FeatureCache, "_fill", slowly)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(make)
        assert begun.wait(10)
        second = make()
        np.testing.assert_array_equal(first.result().values, second.values)
    assert len(filled) == 1


@pytest.mark.parametrize("backbone", ["unet", "uvit"])
def test_features_in_bf16_stay_close_and_have_a_cache_of_their_own(
    data: ImageData, tmp_path: Path, backbone: str
) -> None:
    """bf16 keeps 8 bits of a product's factors: some per mille of a map, whatever the autocast around it says."""
    uvit = {"patch": 2, "width": 32, "depth": 2, "heads": 2}
    config = tiny_experiment(diffusion={"backbone": backbone, "uvit": uvit}).diffusion
    diffusion = tiny_diffusion(config=config)
    exact, fast = (FrozenFeatures(diffusion, [0, 2], "clean", 4, d) for d in (torch.float32, torch.bfloat16))
    images, t = data.images(np.arange(6), 8), torch.full((6,), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = exact(images, t)
    for expected, found, same in zip(exact(images, t), fast(images, t), inside, strict=True):
        assert found.dtype == torch.float32 and torch.equal(expected, same)
        assert 1e-5 < (found - expected).norm() / expected.norm() < 2e-2
    for frozen in (exact, fast):
        FeatureCache(frozen, data, data.indices("val"), T, False, tmp_path)
    assert len(list(tmp_path.glob("*.f16"))) == 2


def test_a_training_keeps_the_dtype_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert frozen_dtype("bf16", cpu, tmp_path) == torch.bfloat16
    assert frozen_dtype("fp32", cpu, tmp_path) == torch.float32
    assert not list(tmp_path.iterdir())
    for hardware in (torch.bfloat16, torch.float32):  # the second: another machine
        monkeypatch.setattr("dcube.features.frozen.fast_dtype", lambda device, dtype=hardware: dtype)
        assert frozen_dtype("auto", cpu, tmp_path) == torch.bfloat16


def test_values_beyond_half_precision_are_clipped(data: ImageData, tmp_path: Path) -> None:
    diffusion = tiny_diffusion()
    diffusion.model.stem.weight.mul_(1e8)  # type: ignore[union-attr, operator]
    frozen = FrozenFeatures(diffusion, [0], "clean", 4)
    cache = FeatureCache(frozen, data, data.indices("train"), T, False, tmp_path)
    (maps,) = cache.maps(np.array([0]), np.array([False]), np.array([0]))
    assert torch.isfinite(maps).all() and maps.float().abs().max() > 6e4


@pytest.mark.parametrize("grid", [1, 2, 4, 16])
def test_larger_maps_are_averaged_down(data: ImageData, grid: int) -> None:
    diffusion = tiny_diffusion()
    image, t = data.images(np.array([0]), 8), torch.tensor([3])
    (full,) = block_maps(diffusion, image, t, ["down1"])
    (brought,) = FrozenFeatures(diffusion, [0], "clean", grid)(image, t)
    side = min(grid, 8)
    expected = full.reshape(1, 8, side, 8 // side, side, 8 // side).mean((3, 5))
    torch.testing.assert_close(brought, expected, rtol=1e-5, atol=1e-6)


def test_modes_of_table_7(data: ImageData) -> None:
    diffusion = tiny_diffusion()
    images, t = data.images(np.arange(3), 8), torch.tensor([3, 0, 19])
    x0 = images * 2 - 1

    def tap(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return diffusion.model(x, t, torch.full((3,), 3), ("up1",))[1]["up1"]

    def maps(mode: str) -> torch.Tensor:
        return block_maps(diffusion, images, t, ["up1"], mode)[0]

    assert torch.equal(maps("clean"), tap(x0, t))
    assert torch.equal(maps("clean_t0"), tap(x0, torch.zeros(3, dtype=torch.long)))
    noise = fixed_noise(t, x0.shape[1:])
    assert torch.equal(maps("noised"), tap(diffusion.schedule.add_noise(x0, noise, t), t))
    assert torch.equal(fixed_noise(t[2:], x0.shape[1:])[0], noise[2])  # whatever stands beside it
    assert abs(noise.std() - 1) < 0.2


@pytest.mark.parametrize("mode", ["clean", "noised"])
def test_on_a_cpu_a_forward_takes_what_the_cache_holds(data: ImageData, mode: str) -> None:
    """The wider the layers, the fewer images go together; their features are the same."""
    frozen = FrozenFeatures(tiny_diffusion(), [0, 4], mode, 8)
    widest = 8 * 8 * 8 * 2  # values of the U-Net's first level: 8 channels, joined with as many of a skip
    assert frozen.at_once is not None and CPU_VALUES // (2 * widest) <= frozen.at_once <= 2 * CPU_VALUES // widest
    images, t = data.images(np.arange(5), 8), torch.tensor([3, 0, 19, 7, 3])
    together = frozen(images, t)
    frozen.at_once = 2
    for part, whole in zip(frozen(images, t), together, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)
        assert part.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
def test_any_number_of_channels(channels: int) -> None:
    frozen = FrozenFeatures(tiny_diffusion(config=tiny_experiment().diffusion, channels=channels), [0, 4], "clean", 4)
    assert frozen.shapes == [(8, 4, 4), (8, 4, 4)]
