"""A checkpoint is complete or absent, and brings everything back."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dcube.errors import DCubeError, InputError
from dcube.training import state as state_module
from dcube.training.ema import EMA
from dcube.training.state import TrainState, checkpoints, load_metadata, load_weights, save_weights


def fresh(seed: int = 0, width: int = 4) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)).to(memory_format=torch.channels_last)
    return TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.1), EMA(model, 0.9))


def advance(state: TrainState, steps: int = 1) -> None:
    for _ in range(steps):
        torch.manual_seed(state.step)
        state.model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.ema.update(state.model, state.step)
        state.step += 1


def everything(state: TrainState) -> dict[str, torch.Tensor]:
    slots = {f"{i}.{n}": t for i, s in enumerate(state.optimizer.state.values()) for n, t in s.items()}
    return {**state.model.state_dict(), **{f"ema.{n}": t for n, t in state.ema.model.state_dict().items()}, **slots}


def test_everything_comes_back(tmp_path: Path) -> None:
    state = fresh()
    advance(state, 3)
    state.extra = {"best": {"step": 2, "macro_f1": 0.1 + 0.2}}
    state.save(tmp_path)
    again = fresh(seed=1)
    assert again.resume(tmp_path)
    assert (again.step, again.extra) == (3, state.extra)
    for both in (lambda: None, lambda: (advance(state), advance(again))):  # also after another step
        both()
        expected, found = everything(state), everything(again)
        assert expected.keys() == found.keys() and len(expected) == 14 + 3 * 4
        for name, tensor in expected.items():
            assert torch.equal(tensor, found[name]) and tensor.stride() == found[name].stride(), name


def test_what_is_frozen_is_kept_once(tmp_path: Path) -> None:
    def made(seed: int) -> TrainState:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 50).requires_grad_(False), nn.Linear(50, 2))
        return TrainState(model, torch.optim.AdamW(model[1].parameters(), lr=0.1), EMA(model, 0.9))

    state, again = made(0), made(1)
    for _ in range(3):
        state.model(torch.ones(1, 3)).square().mean().backward()
        state.optimizer.step()
        state.ema.update(state.model, state.step)
        state.step += 1
    found = state.save(tmp_path)
    assert set(load_file(found / "ema.safetensors")) == {"1.weight", "1.bias"}
    assert again.resume(tmp_path)
    for name, tensor in everything(state).items():
        assert torch.equal(tensor, everything(again)[name]), name
    assert not torch.equal(again.model[1].weight, again.ema.model[1].weight)


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert not fresh().resume(tmp_path / "absent")


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    state = fresh()
    for _ in range(3):
        state.save(tmp_path)
        advance(state)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("failing_call", [0, 1, 2])
def test_a_failure_while_saving_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    state = fresh()
    advance(state)
    state.save(tmp_path)
    advance(state)
    real, calls = state_module.save_file, []

    def full(tensors: dict[str, torch.Tensor], path: Path, metadata: None) -> None:
        calls.append(path)
        if len(calls) > failing_call:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(state_module, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        state.save(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]
    monkeypatch.undo()
    again = fresh(seed=1)
    assert again.resume(tmp_path) and again.step == 1
    advance(again)
    again.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]  # what was half-written is gone


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failure_of_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    state = fresh()
    state.save(tmp_path)
    advance(state)

    def fails(*arguments: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(state_module.os, call, fails)
    with pytest.raises(OSError, match="power cut"):
        state.save(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000000"]


def test_saving_a_step_again_never_takes_the_checkpoint_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step is saved in the loop and after it; a kill between removal and renaming would lose the run."""
    state = fresh()
    state.save(tmp_path)
    monkeypatch.setattr(state_module.shutil, "rmtree", lambda path, **_: pytest.fail(f"{path} is removed"))
    assert state.save(tmp_path) == checkpoints(tmp_path)[-1]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    fresh().save(tmp_path)
    with pytest.raises(DCubeError, match="does not fit this model; remove the folder"):
        fresh(width=5).resume(tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = fresh().save(tmp_path)
    (path / "state.json").write_text("{")
    with pytest.raises(DCubeError, match="damaged .* remove the folder"):
        fresh().resume(tmp_path)
    (path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DCubeError, match="damaged .* remove the folder"):
        fresh().resume(tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(DCubeError, match="damaged .* remove the folder"):
        fresh().resume(tmp_path)


def test_weights_carry_their_metadata(tmp_path: Path) -> None:
    model, about = fresh().model, {"classes": ["a", "b"], "step": 3, "normalisation": {"low": 0.25}}
    save_weights(tmp_path / "w.safetensors", model, about)
    tensors, metadata = load_weights(tmp_path / "w.safetensors")
    assert metadata == about
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(DCubeError, match="cannot be read"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_weights_have_the_permissions_of_any_other_file(tmp_path: Path, umask: int) -> None:
    state, before = fresh(), os.umask(umask)
    try:
        advance(state)
        state.save(tmp_path / "checkpoint")
        save_weights(tmp_path / "w.safetensors", state.model, {})
        save_weights(tmp_path / "w.safetensors", state.model, {})  # over an older one
    finally:
        os.umask(before)
    files = [tmp_path / "w.safetensors", *checkpoints(tmp_path / "checkpoint")[0].iterdir()]
    assert len(files) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


@pytest.mark.parametrize("read", [load_weights, load_metadata, lambda path: fresh().resume(path.parent.parent)])
def test_weights_of_somebody_else_are_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    file = tmp_path / "step-00000001/model.safetensors"
    save_weights(file, fresh().model, {})

    def forbidden(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(state_module, "open", forbidden, raising=False)  # the tests may run as root
    with pytest.raises(InputError, match=r"model\.safetensors may not be read by this user .*chmod -R a\+rX"):
        read(file)
