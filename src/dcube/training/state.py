"""Saving and resuming a training: complete checkpoints or none, weights in safetensors, the rest in JSON."""

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dcube.errors import DCubeError, InputError
from dcube.files import atomic_write, read_json
from dcube.training.ema import EMA


class TrainState:
    """Everything that changes during a training: weights, EMA, optimiser, step, and `extra` (JSON)."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA) -> None:
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.step = 0
        self.extra: dict[str, Any] = {}

    def save(self, directory: Path) -> Path:
        """Write `directory/step-N`, move it into place in one step, then drop older ones."""
        final = directory / f"step-{self.step:08d}"
        if final.exists():  # complete, and equal: nothing changes between two steps
            return final
        temporary = directory / f".tmp-{self.step:08d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            _write(_tensors(self.model), temporary / "model.safetensors")
            _write(_tensors(self.ema.model, besides=self.model), temporary / "ema.safetensors")
            _write(self._optimizer_tensors(), temporary / "optimizer.safetensors")
            (temporary / "state.json").write_text(json.dumps({"step": self.step, "extra": self.extra}))
            for path in (*temporary.iterdir(), temporary):
                _sync(path)
            os.replace(temporary, final)
        finally:  # on a full disk it would keep its part
            shutil.rmtree(temporary, ignore_errors=True)
        _sync(directory)
        for older in checkpoints(directory)[:-1]:
            shutil.rmtree(older)
        return final

    def resume(self, directory: Path) -> bool:
        """Continue from the newest complete checkpoint; False where there is none."""
        for left_over in directory.glob(".tmp-*"):
            shutil.rmtree(left_over)
        found = checkpoints(directory)
        if not found:
            return False
        for path in found[-1].iterdir():
            _refuse_forbidden(path)
        try:
            weights = load_file(found[-1] / "model.safetensors")
            self.model.load_state_dict(weights)
            self.ema.model.load_state_dict(weights | load_file(found[-1] / "ema.safetensors"))
            self._load_optimizer(load_file(found[-1] / "optimizer.safetensors"))
            state = read_json(found[-1] / "state.json")
            self.step, self.extra = state["step"], state["extra"]
        except (RuntimeError, KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise DCubeError(
                f"The checkpoint {found[-1]} is damaged or does not fit this model; remove the folder"
                f" {directory.parent} and repeat the command to train anew."
            ) from error
        return True

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        states = self.optimizer.state_dict()["state"]
        slots = {f"{index}.{name}": tensor for index, slot in states.items() for name, tensor in slot.items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in slots.items()}

    def _load_optimizer(self, tensors: dict[str, torch.Tensor]) -> None:
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            index, slot = name.split(".", 1)
            states.setdefault(int(index), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        for parameter, slots in self.optimizer.state.items():  # the memory format of an uninterrupted training
            for name, tensor in slots.items():
                if tensor.shape == parameter.shape:
                    slots[name] = torch.empty_like(parameter).copy_(tensor)


def checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(directory.glob("step-*")) if directory.is_dir() else []


def save_weights(path: Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """Weights with everything needed to rebuild the model in the file's metadata (JSON)."""
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    atomic_write(path, lambda temporary: _write(_tensors(model), temporary, texts))


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that `save_weights` wrote; DCubeError where it cannot be read, InputError where
    it may not be.
    """
    _refuse_forbidden(path)
    try:
        with safe_open(path, "pt") as handle:
            texts = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:
        raise DCubeError(unreadable(path, error)) from error
    return tensors, {name: json.loads(text) for name, text in texts.items()}


def load_metadata(path: Path) -> dict[str, Any]:
    """The metadata alone; DCubeError where the file cannot be read, InputError where it may not be."""
    _refuse_forbidden(path)
    try:
        with safe_open(path, "pt") as handle:
            return {name: json.loads(text) for name, text in (handle.metadata() or {}).items()}
    except Exception as error:
        raise DCubeError(unreadable(path, error)) from error


def unreadable(path: Path, error: Exception) -> str:
    """What is said of damaged weights."""
    return f"The weights {path} cannot be read ({error}); remove the file and repeat the command that made it."


def _refuse_forbidden(path: Path) -> None:
    """InputError where this user may not read a file: safetensors would call it missing."""
    try:
        with open(path, "rb"):
            return
    except PermissionError as error:
        raise InputError(
            f"The weights {path} may not be read by this user ({error.strerror}); ask their owner to allow it, on Linux"
            " and macOS with `chmod -R a+rX` on the run folder."
        ) from error
    except OSError:  # said by who reads it
        return


def _write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """As a new file with the permissions that any other has: safetensors' own may be read by its owner alone."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata)
    path.chmod(mode)


def _tensors(model: nn.Module, besides: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """Of the model on the CPU, without those that are the very ones of the model `besides`."""
    shared = {name: tensor.data_ptr() for name, tensor in besides.state_dict().items()} if besides else {}
    own = {name: tensor for name, tensor in model.state_dict().items() if shared.get(name) != tensor.data_ptr()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folder, and needs no such call
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes only what may be written
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
