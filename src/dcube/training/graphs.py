"""Forward and backward pass of a step, on a GPU recorded once and then launched as a whole (a CUDA graph).

A step of these networks is a thousand small kernels: launched one by one they keep the processor longer busy than the
GPU.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

Batch: TypeAlias = dict[str, torch.Tensor]
Parts: TypeAlias = dict[str, torch.Tensor]
WAIT = "called a synchronizing CUDA operation"  # torch's words
FAILED: list[str] = []  # after a recording that failed none is tried again in this process: torch may be in disorder
LOADER = "dcube-loader"  # names of the threads that load batches begin so
WARM_UP = 3  # steps of a kind before it is recorded: libraries make their choices and set themselves up in them


class Recorder(Protocol):
    """What records: torch's CUDA graphs, a stand-in in the tests."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does `work` again each time it is called; doing it now is left out."""
        ...


@dataclass
class Recording:
    """A recorded step: the batch it reads, what it leaves, and the parameters' gradients, all in fixed places."""

    batch: Batch
    replay: Callable[[], None]
    loss: torch.Tensor
    parts: Parts
    gradients: list[torch.Tensor | None]


class Passes:
    """Forward and backward passes of the steps of a training; called with (batch, step), returns the loss and its
    parts, detached, with the gradients left in the parameters.

    run: the two passes as they are. `record`: None, or what records them, anew when a batch of another kind comes
    (names, shapes, dtypes); what cannot be recorded runs as it is, which is said once.
    """

    def __init__(
        self, model: nn.Module, run: Callable[[Batch, int], tuple[torch.Tensor, Parts]], device: torch.device,
        record: Recorder | None = None,
    ) -> None:  # fmt: skip
        self.parameters, self.run, self.device, self.record = list(model.parameters()), run, device, record
        self.kind: object = None
        self.seen = 0  # steps of this kind
        self.recording: Recording | None = None

    def __call__(self, batch: Batch, step: int) -> tuple[torch.Tensor, Parts]:
        if self.record is None:
            return self.run(batch, step)
        kind = sorted((name, v.shape, v.dtype) for name, v in batch.items())
        if kind != self.kind:
            self.kind, self.seen, self.recording = kind, 0, None
        self.seen += 1
        if self.seen == WARM_UP:
            with waits(self.device) as found:
                result = self.run(batch, step)
            if found:
                self._give_up("it waits for the GPU")
            return result
        if self.recording is None and self.seen > WARM_UP:
            self.recording = self._recorded(batch, step)
        if self.recording is None:
            return self.run(batch, step)
        held = self.recording
        for name, value in batch.items():
            held.batch[name].copy_(value, non_blocking=True)
        held.replay()
        for parameter, gradient in zip(self.parameters, held.gradients, strict=True):
            parameter.grad = gradient
        return held.loss.clone(), {name: v.clone() for name, v in held.parts.items()}

    def _recorded(self, batch: Batch, step: int) -> Recording | None:
        assert self.record is not None
        for parameter in self.parameters:
            parameter.grad = None  # so that the gradients are made anew, in memory of the recording
        fixed, found = {name: v.to(self.device, copy=True) for name, v in batch.items()}, []
        run = self.run  # alone: what is recorded must not hold this object, or its memory outlives the training
        try:
            replay = self.record(lambda: found.append(run(fixed, step)))
        except Exception as error:  # whatever a library forbids
            self._give_up(f"{type(error).__name__}: {error}".splitlines()[0])
            for parameter in self.parameters:
                parameter.grad = None
            return None
        [(loss, parts)] = found
        return Recording(fixed, replay, loss, parts, [parameter.grad for parameter in self.parameters])

    def _give_up(self, reason: str) -> None:
        self.record = None
        print(f"A step cannot be recorded as a CUDA graph ({reason}); its kernels are launched one by one.")


@contextlib.contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """Inside, what makes a thread wait for a CUDA device is noted: in a recording it would be an error. Threads that
    load batches (`loop.ahead`) may wait.
    """
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    show = warnings.showwarning

    def note(message: Warning | str, *where: Any, **more: Any) -> None:
        if WAIT not in str(message):
            show(message, *where, **more)
        elif not threading.current_thread().name.startswith(LOADER):
            found.append(str(message))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("warn")
        warnings.filterwarnings("always", WAIT)
        warnings.showwarning = note
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Records the kernels of `work` on the current CUDA device. Other threads, which load batches, may go on."""
    if FAILED:
        raise RuntimeError(f"an earlier recording failed: {FAILED[0]}")
    graph: Any = torch.cuda.CUDAGraph()
    stream: Any = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    except BaseException as error:  # torch leaves its stream, and a generator that takes itself to be recorded
        torch.cuda.set_stream(stream)
        generator: Any = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        FAILED.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise
    finally:
        torch.cuda.synchronize()
    return partial(_replay, graph, work)


def _replay(graph: Any, work: Callable[[], None]) -> None:
    """`work` is held: what is recorded reads and writes its tensors."""
    graph.replay()
