"""Prediction of many images: decoded by threads, in order, a bounded number ahead of the model."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcube import inference
from dcube.classifier.model import Predictor
from dcube.data.decode import read_image
from dcube.data.readers import AHEAD, Room, ahead
from dcube.errors import InputError
from dcube.features.frozen import FrozenFeatures
from dcube.inference import predict_files, predict_raw, training_look, unlike_training
from tiny import tiny_diffusion, tiny_predictor


@pytest.fixture
def predictor() -> Predictor:
    return tiny_predictor()


def test_small_images_are_like_a_training_on_small_ones(predictor: Predictor) -> None:
    raw, metadata = np.full((12, 12), 128, np.uint8), predictor.metadata
    assert "only 12 x 12 pixels" in unlike_training(raw, metadata), "nothing is known of the training's files"
    for sides, warned in (([12, 12], False), ([23, 40], False), ([25, 40], True), ([500, 900], True)):
        look = training_look(np.random.default_rng(0).random((9, 1, 8, 8), np.float32), sides)
        assert ("pixels" in unlike_training(raw, metadata | {"look": look})) == warned


def test_results_come_in_order_and_few_wait() -> None:
    """Some take longer; never more than AHEAD are given to the threads and not yet taken."""
    given = taken = worst = 0

    def items() -> Iterator[int]:
        nonlocal given, worst
        for item in range(5 * AHEAD):
            given += 1
            worst = max(worst, given - taken)
            yield item

    def work(item: int) -> int:
        time.sleep(0.002 if item % 7 == 0 else 0)
        return item * item

    for expected, result in enumerate(ahead(items(), work)):
        assert result == expected**2
        taken += 1
    assert taken == 5 * AHEAD and worst == AHEAD


def test_work_is_done_while_the_caller_works_and_its_error_comes_in_its_turn() -> None:
    started = threading.Event()

    def work(item: int) -> int:
        if item == 3:
            started.set()
            raise InputError("the fourth")
        return item

    results = ahead(range(10), work)
    assert next(results) == 0 and started.wait(5)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(InputError, match="the fourth"):
        next(results)


def test_large_images_are_decoded_one_after_another_and_small_ones_side_by_side(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcube.data.readers.os.cpu_count", lambda: 8)
    monkeypatch.setattr(inference, "Room", lambda: Room(2 * 40 * 40))
    names = [str(tmp_path / f"{i:02}-{40 if i % 2 else 60}.png") for i in range(24)]
    for name in names:
        side = int(name[-6:-4])
        Image.fromarray(np.zeros((side, side), np.uint8)).save(name)
    Path(names[5]).write_bytes(b"no image")  # of unknown size
    large, lock = {names[5], *names[::2]}, threading.Lock()
    inside: list[str] = []
    seen: set[tuple[int, int]] = set()  # how many large and small ones were read at once

    def read(path: str) -> np.ndarray:
        with lock:
            inside.append(path)
            seen.add((len(large & {*inside}), len({*inside} - large)))
        time.sleep(0.02)
        with lock:
            inside.remove(path)
        return read_image(path)

    monkeypatch.setattr(inference, "read_image", read)
    assert len(predict_files(predictor, names)) == 23 and seen == {(1, 0), (0, 1), (0, 2)}
    seen.clear()
    assert len(np.concatenate(list(predict_raw(predictor, names[6:], read)))) == 18 and seen == {(1, 0), (0, 1), (0, 2)}


def images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + i, 32), dtype=np.uint8) for i in range(count)]


def test_many_images_alone_and_together(predictor: Predictor) -> None:
    """More than one chunk, the last one partial; whichever timesteps go through one forward."""
    raw = images(inference.CHUNK + 5)
    together = np.concatenate(list(predict_raw(predictor, raw, lambda image: image)))
    assert together.shape == (len(raw), 3) and together.std(0).min() > 1e-4
    for i in (0, 17, len(raw) - 1):
        (alone,) = predict_raw(predictor, [raw[i]], lambda image: image)
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
    assert not list(predict_raw(predictor, [], lambda image: image))


@pytest.mark.parametrize("joint", [1, 6, 64])
def test_timesteps_of_one_forward_or_of_several(
    predictor: Predictor, joint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcube.classifier.model.JOINT", joint)
    small, large = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 32, 32)
    with torch.inference_mode():
        each = [predictor.model(large, predictor.frozen(small, torch.full((3,), t))).softmax(1) for t in (1, 5)]
    torch.testing.assert_close(predictor(small, large), sum(each) / 2, rtol=1e-5, atol=1e-6)


def test_prediction_in_bf16_stays_close(predictor: Predictor) -> None:
    """`features.predict_dtype`: the second or third decimal place of a probability, never another order of classes
    where they lie apart."""
    fast = dataclasses.replace(predictor, frozen=FrozenFeatures(tiny_diffusion(), [1, 3], "clean", 4, torch.bfloat16))
    small, large = torch.rand(16, 1, 8, 8), torch.rand(16, 1, 32, 32)
    assert 1e-6 < (fast(small, large) - predictor(small, large)).abs().max() < 1e-2


def test_files_with_a_broken_one_among_them(
    predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path / f"{i:03}.png") for i in range(40)]
    for path, image in zip(paths, images(40), strict=True):
        Image.fromarray(image).save(path)
    Path(paths[7]).write_bytes(b"no image")
    rows = predict_files(predictor, paths)
    assert [row["path"] for row in rows] == paths[:7] + paths[8:]
    assert paths[7] in capsys.readouterr().err
    expected = np.concatenate(list(predict_raw(predictor, images(40), lambda image: image)))
    found = np.array([[row[f"p_{name}"] for name in "abc"] for row in rows])
    np.testing.assert_allclose(found, np.delete(expected, 7, axis=0), atol=1e-5)
    assert {row["warning"] for row in rows} == {""}
    assert [row["path"] for row in predict_files(predictor, paths[6:8])] == paths[6:7], "also where they are many"
    with pytest.raises(InputError, match="None of 1 images can be read"):
        predict_files(predictor, paths[7:8])
