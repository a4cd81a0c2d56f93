"""Device, precision and processes: the only file that knows Accelerate."""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from dcube.config import RuntimeConfig
from dcube.errors import InputError, MemoryShort
from dcube.training.compiled import compile_parts, compiled_parts, still_compiles, try_compiled
from dcube.training.fastest import Trial, fastest, set_attention
from dcube.training.graphs import Recorder, cuda_graph
from dcube.training.memory import keep_memory
from dcube.training.team import team_size

GPU_LOADERS = 3  # threads: a GPU is done with a batch of 128 images before one thread has made the next
PATIENCE = timedelta(hours=6)  # of a process while the first one validates or draws samples


class Runtime:
    """Where and how a training runs. One process on a laptop, many under `accelerate launch` or torchrun.

    `unused`: the model may have parameters that its forward does not use.
    """

    def __init__(self, config: RuntimeConfig, dtype: str = "fp32", unused: bool = False) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

        check_device(config.device)
        use_threads(config)
        together = team_size() > 1 and pick_device(config.device).type == "cpu"
        held = AcceleratorState._shared_state.get("device")
        if team_size() == 1 and held is not None and held.type != pick_device(config.device).type:
            AcceleratorState._reset_state(True)  # or the process's first training would settle the device of all others
        self.accelerator = Accelerator(
            cpu=config.device == "cpu" or together, mixed_precision="no",  # or its launcher's settings would decide
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=PATIENCE),
                # statistics of batch normalisation: the first process's own are kept
                DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=unused),
            ],
        )
        if self.accelerator.num_processes != team_size():
            raise InputError(
                "Several processes train on CUDA GPUs or on the CPU; use --device cpu, or run it without torchrun."
            )
        self.device: torch.device = self.accelerator.device
        keep_memory()
        self.dtype = named_dtype(dtype, self.device)
        self.attention: str = "sdpa" if config.attention == "auto" else config.attention
        self.milliseconds: dict[str, float] | None = None  # of the trial that chose them, where there was one
        self.compile: str = config.compile
        self.graphs: bool = config.graphs == "auto"
        self._open = dtype == "auto", config.attention == "auto"  # what a trial may choose

    @property
    def is_main(self) -> bool:
        """True in the process that writes files."""
        return bool(self.accelerator.is_main_process)

    @property
    def rank(self) -> int:
        """Number of this process: 0 in the main one."""
        return int(self.accelerator.process_index)

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on its device, wrapped for data parallel training where there are several processes."""
        model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
        with warnings.catch_warnings():  # a newer name of an option that Accelerate does not know yet
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            prepared: nn.Module = self.accelerator.prepare_model(model)
        return prepared

    def choose(self, trials: Callable[[], dict[str, Trial]]) -> None:
        """Where a setting is auto on a CPU: dtype and attention by a trial of a second (training/fastest.py). A GPU
        keeps the hardware's own: it has the fused kernels.
        """
        if self.device.type != "cpu" or not any(self._open) or fast_dtype(self.device) == torch.float32:
            return
        if self.is_main:
            dtypes = [torch.bfloat16, torch.float32] if self._open[0] else [self.dtype]
            kinds: list[str] = ["sdpa", "explicit"] if self._open[1] else [self.attention]
            found = fastest(trials(), dtypes, kinds)
            self.dtype, self.attention, self.milliseconds = found.dtype, found.attention, found.milliseconds
        self.dtype = torch.bfloat16 if self.any_process(self.dtype == torch.bfloat16) else torch.float32
        self.attention = "explicit" if self.any_process(self.attention == "explicit") else "sdpa"

    def try_compile(self, trials: Callable[[], dict[str, Trial]], model: nn.Module, images: int, steps: int) -> None:
        """Whether parts of the model are compiled (training/compiled.py), by a trial on a process's part of `images`
        images, for a training of `steps` steps: where it is asked for and works, or, left open, where there is a GPU
        and it pays.
        """
        count = len(compiled_parts(model))
        wanted = count > 0 and (self.compile == "always" or (self.compile == "auto" and self.device.type == "cuda"))
        if wanted and self.is_main:
            part = trials()["dtype"]
            mine, copies = images // self.accelerator.num_processes, count // max(1, len(compiled_parts(part[0])))
            asked = self.compile == "always"
            total = math.inf if asked else steps * copies
            gain = try_compiled(part, self.dtype, self.attention, self.device, mine, total, self.recorder)
            wanted = not gain.failure and (asked or gain.pays(steps, copies))
            if gain.failure:
                self._say_uncompiled(gain.failure)
            else:
                self.milliseconds = (self.milliseconds or {}) | gain.milliseconds()
        self.compile = "always" if self.any_process(wanted) else "never"

    def compile_again(self, trials: Callable[[], dict[str, Trial]]) -> None:
        """A training that began compiled goes on so, unless that fails on this machine."""
        if self.compile == "always":
            failure = still_compiles(trials()["dtype"], self.dtype, self.attention, self.device) if self.is_main else ""
            if failure:
                self._say_uncompiled(failure)
            self.compile = "always" if self.any_process(not failure) else "never"

    def _say_uncompiled(self, failure: str) -> None:
        print(f"torch.compile does not work here ({failure}); the model runs without.")

    def apply(self, model: nn.Module) -> dict[str, str]:
        """Tell the model what was chosen; returns dtype, attention and compilation by name."""
        set_attention(model, self.attention)
        compiled = self.compile == "always" and bool(compiled_parts(model))
        if compiled:
            compile_parts(model)
        dtype = str(self.dtype).removeprefix("torch.")
        return {"dtype": dtype, "attention": self.attention, "compile": "always" if compiled else "never"}

    def keep(self, dtype: str, attention: str, compile: str) -> None:
        """Take what a training began with, for the settings that are auto."""
        if self._open[0]:
            self.dtype = getattr(torch, dtype)
        if self._open[1]:
            self.attention = attention
        if self.compile == "auto":
            self.compile = compile

    @property
    def recorder(self) -> Recorder | None:
        """What records steps: CUDA graphs, where one process trains on a GPU."""
        alone = self.accelerator.num_processes == 1
        return cuda_graph if self.graphs and alone and self.device.type == "cuda" else None

    def memory_settings(self, settings: str) -> str:
        """Settings to lower where memory does not suffice: a recorded step holds on to what it needs."""
        return f"{settings}, or set runtime.graphs=never" if self.recorder else settings

    @property
    def loaders(self) -> int:
        """Threads that load batches: on a CPU one, which shares the cores with the training."""
        return GPU_LOADERS if self.device.type == "cuda" else 1

    def share(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """This process's part of a global batch (split along the first axis), on its device."""
        count, rank = self.accelerator.num_processes, self.rank
        return {
            name: v[len(v) * rank // count : len(v) * (rank + 1) // count].to(self.device, non_blocking=True)
            for name, v in batch.items()
        }

    def pin(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch in page-locked memory, from where a GPU fetches it while it computes; unchanged without CUDA."""
        if self.device.type != "cuda":
            return batch
        return {name: v if v.is_cuda else v.pin_memory() for name, v in batch.items()}

    def any_process(self, flag: bool) -> bool:
        """True everywhere when the main process says so (stopping must be unanimous)."""
        if self.accelerator.num_processes == 1:
            return flag
        from accelerate.utils import broadcast

        return bool(broadcast(torch.tensor([flag], device=self.device)).item())

    def autocast(self) -> Any:
        """Context of the forward pass."""
        return precision(self.device, self.dtype)

    def backward(self, loss: torch.Tensor) -> None:
        """Backward pass (gradients averaged over the processes)."""
        loss.backward()  # type: ignore[no-untyped-call]  # not Accelerate's, which divides it by its launcher's settings

    def wait(self) -> None:
        """Barrier of all processes."""
        if self.accelerator.num_processes > 1:
            self.accelerator.reduce(torch.ones((), device=self.device)).item()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """A block that the main process goes through before the others do, and after all of them have come to it."""
        self.wait()
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


def use_threads(config: RuntimeConfig) -> None:
    """Threads on a CPU; the last bits of a sum depend on them, so every stage uses the same."""
    if config.threads:
        limit_threads(config.threads)


def limit_threads(count: int) -> None:
    """So many threads for torch and for the linear algebra of NumPy and SciPy, loaded already or later: processes
    that each take all cores get in each other's way, many times over.
    """
    torch.set_num_threads(count)
    threadpool_limits(count)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)


def check_device(device: str) -> None:
    """InputError where the asked-for device is not there, or not for each of several processes."""
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise InputError(
            f"There is no device '{device}'; choose auto, cpu, cuda or mps (of several GPUs by CUDA_VISIBLE_DEVICES)."
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("No CUDA device is available here; use --device cpu or --device auto.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError("No Apple GPU is available here; use --device cpu or --device auto.")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if team_size() > 1 else 1  # of this machine's processes
    if device in ("auto", "cuda") and torch.cuda.is_available() and here > torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise InputError(
            f"There are {here} processes and {gpus} GPU(s) on this machine; give torchrun --nproc-per-node {gpus}."
        )


def pick_device(device: str) -> torch.device:
    """The device for prediction; `auto` takes CUDA, then Apple's GPU, then the CPU."""
    check_device(device)
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def precision(device: torch.device, dtype: torch.dtype) -> Any:
    """Context in which a model multiplies in `dtype`, whatever the precision around it."""
    low = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype=dtype if low else torch.bfloat16, enabled=low)


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """x in float32, where losses and probabilities are formed also under bf16; float64 stays what it is."""
    return x if x.dtype == torch.float64 else x.float()


def named_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the settings' fp32, bf16 and auto."""
    return {"bf16": torch.bfloat16, "fp32": torch.float32}.get(name) or fast_dtype(device)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it natively, else fp32: the default that a trial must clearly beat."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


@contextlib.contextmanager
def memory_advice(settings: str) -> Iterator[None]:
    """Turn an out-of-memory error into a sentence that names the settings to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryShort(f"The memory of the device does not suffice; lower {settings}.") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        raise MemoryShort(f"The memory of the machine does not suffice; lower {settings}.") from error
