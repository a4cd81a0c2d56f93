"""The machine: its names, and the rate at which it multiplies matrices of the model's shapes."""

import math
import os
import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from benchmarks.timing import seconds
from dcube.config import DiffusionConfig
from dcube.environment import cpu_name

Shape = tuple[int, int, int]  # rows, inner, columns
WARM_UP, RUNS = 2, 7
CALLS = 200  # of a product on a GPU between two looks at the clock: one alone ends before its launch is paid


class Flops(TorchDispatchMode):
    """Floating point operations of matrix products, convolutions and attention, by dtype.

    The formulas are those of torch's FlopCounterMode, which does not tell dtypes apart and takes the backward pass of
    a grouped convolution for that of a full one (ten times the operations of a step of EfficientNet).
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_dtype: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        formula = _convolution_backward if packet is torch.ops.aten.convolution_backward else flop_registry.get(packet)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # inference mode hands over whole functions: see what they are made of
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            factor = next(a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point() and a.ndim > 1)
            self.by_dtype[factor.dtype] += formula(*args, **kwargs, out_val=out)
        return out


def _convolution_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *rest: Any, **_: Any) -> int:
    """As many operations as the forward pass for each of the gradients by input and weight that is asked for."""
    transposed, wanted = rest[4], rest[7]
    return 2 * (x if transposed else grad).numel() * math.prod(weight.shape[1:]) * sum(wanted[:2])


def total_flops(call: Any) -> int:
    """What FlopCounterMode counts in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


class MatrixRates:
    """How fast this machine multiplies matrices of the model's shapes, FLOP/s per dtype.

    A layer's three products count: forward, gradient by the input, gradient by the weight. `measure` gives the rate of
    all of them, one after the other: operations over the sum of median times, measured again beside every case, for
    machines have moods. `best` keeps the fastest single product seen.
    """

    def __init__(self, shapes: Sequence[Shape], device: torch.device) -> None:
        self.shapes, self.device = shapes, device
        self.best: dict[torch.dtype, float] = {}
        self.last: dict[torch.dtype, float] = {}

    def measure(self, dtype: torch.dtype) -> float:
        """Rate of the model's products now."""
        flops, total = 0.0, 0.0
        calls = CALLS if self.device.type == "cuda" else 1
        for rows, inner, columns in self.shapes:
            x = torch.randn(rows, inner, device=self.device).to(dtype)
            weight = torch.randn(columns, inner, device=self.device).to(dtype)
            grad = torch.randn(rows, columns, device=self.device).to(dtype)
            for a, b in ((x, weight.T), (grad, weight), (grad.T, x)):
                out = torch.empty(a.shape[0], b.shape[1], device=self.device, dtype=dtype)
                product = partial(_multiply, a, b, out, calls)
                times = [seconds(product, self.device) / calls for _ in range(WARM_UP + RUNS)]
                work = 2.0 * rows * inner * columns
                flops, total = flops + work, total + statistics.median(times[WARM_UP:])
                self.best[dtype] = max(work / min(times[WARM_UP:]), self.best.get(dtype, 0.0))
        self.last[dtype] = flops / total
        return self.last[dtype]

    def seconds_for(self, flops: Mapping[torch.dtype, float]) -> float:
        """Time that so many operations would take at the rates of `measure`."""
        return sum(count / self.measure(dtype) for dtype, count in flops.items())

    def seconds_at_best(self, flops: Mapping[torch.dtype, float]) -> float:
        """Time that so many operations would take at the rate of the fastest product seen."""
        return sum(count / self.best[dtype] for dtype, count in flops.items())


def _multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, times: int) -> None:
    for _ in range(times):
        torch.mm(a, b, out=out)


def model_shapes(config: DiffusionConfig) -> list[Shape]:
    """Products of the denoiser on a batch of pairs: of U-ViT's layers, of the U-Net's 3x3 convolutions as matrices."""
    images = 2 * config.optimizer.batch_size
    if config.backbone == "uvit":
        rows = images * (1 + (config.image_size // config.uvit.patch) ** 2)
        width, hidden = config.uvit.width, int(config.uvit.width * config.uvit.mlp_ratio)
        return [(rows, width, 3 * width), (rows, width, hidden), (rows, hidden, width)]
    side = config.image_size // config.unet.patch
    levels = enumerate(config.unet.widths)
    return [(images * (side // 2**i) ** 2, 9 * width, width) for i, width in levels]


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, versions."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu,
        "device": device.type, "system": platform.system(), "python": platform.python_version(),
        "torch": torch.__version__,
    }  # fmt: skip
