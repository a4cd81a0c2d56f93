"""The training loop of both steps."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcube.config import OptimizerConfig, RuntimeConfig
from dcube.errors import DCubeError
from dcube.files import read_json, write_json
from dcube.progress import progress
from dcube.training.clock import Clock, Looks, Watch
from dcube.training.ema import EMA
from dcube.training.fastest import Trial
from dcube.training.graphs import LOADER, Batch, Parts, Passes
from dcube.training.log import Log
from dcube.training.order import key
from dcube.training.runtime import Runtime, memory_advice
from dcube.training.state import TrainState, checkpoints
from dcube.training.team import PartDone

MOMENTUM = 0.9  # of SGD, where none is given
LOG_EVERY = 10  # steps between log rows: the loop waits for the device only then


@dataclass
class Hook:
    """Work done every `every` steps and after the last: gets (step, EMA model, extra), returns a log row or None.

    `extra` is saved with the checkpoint; a hook interrupted before the next checkpoint is done again.
    """

    every: int
    run: Callable[[int, nn.Module, dict[str, Any]], dict[str, Any] | None]


@dataclass
class Task:
    """What is trained: the model, the batch of a step (loaded ahead, off the loop), and its loss."""

    name: str
    model: nn.Module
    batch: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch, int], tuple[torch.Tensor, Parts]]
    steps_per_epoch: float
    learning_rates: Callable[[nn.Module], list[dict[str, Any]]] | None = None  # parameter groups; None: one
    hooks: list[Hook] = field(default_factory=list)
    watch: Watch | None = None
    memory_settings: str = "the batch size"
    optimizer_settings: str = "classifier.optimizer"
    trials: Callable[[], dict[str, Trial]] | None = None  # what tells the model's speed; None: the hardware's dtype
    unused: bool = False  # whether the model may have parameters that its forward does not use


@dataclass
class Trained:
    """The result: EMA weights, how far the training came, what the hooks kept, and the seconds that looks took."""

    model: nn.Module
    step: int
    finished: bool
    extra: dict[str, Any]
    paused: float = 0.0


def train(
    task: Task, config: OptimizerConfig, steps: int, seed: int, directory: Path, settings: RuntimeConfig,
    deadline: float | None = None,
) -> Trained:  # fmt: skip
    """Train to `steps`, or to the step boundary at which time.monotonic() passes `deadline` (`task.watch` not
    counted); resume where a checkpoint lies in `directory`. An interrupted training, continued, equals an
    uninterrupted one bit for bit on a CPU: batches, random numbers, rates and EMA are functions of the step.

    Of several processes each trains on its part of every batch; all but the first end in PartDone.
    """
    runtime = Runtime(settings, config.dtype, task.unused)
    advice = runtime.memory_settings(task.memory_settings)
    with memory_advice(advice):
        model = runtime.prepare(task.model)
        state = TrainState(task.model, make_optimizer(task, config), EMA(task.model, config.ema_decay))
        with runtime.main_first():
            log = _begin(state, directory, runtime.is_main)
        keep_choice(runtime, task, log, directory, config, steps)
    passes = passes_of(task, runtime, model)
    buffer: list[tuple[int, Parts]] = []
    saved = time.monotonic()
    clock, ends_early = Clock(log.seconds if log else 0.0, deadline), runtime.any_process(deadline is not None)
    look = Looks(task.watch, clock, log, state)

    def report() -> dict[str, Any]:
        row = _flush(buffer, task.optimizer_settings, directory) | {"lr": learning_rate(config, state.step - 1, steps)}
        row |= {"epoch": state.step / task.steps_per_epoch, "seconds": round(clock.seconds, 3)}
        if log:
            log.write(row)
        return row

    with progress(task.name, steps, state.step) as advance, memory_advice(advice):
        look()
        for batch in ahead(lambda step: runtime.pin(task.batch(step)), state.step, steps, runtime.loaders):
            if ends_early and runtime.any_process(clock.is_over):
                break
            parts = train_step(task, runtime, passes, state, batch, config, steps, seed)
            buffer.append((state.step, parts))
            due = [hook for hook in task.hooks if state.step % hook.every == 0 or state.step == steps]
            save = time.monotonic() - saved > settings.checkpoint_seconds or state.step == steps
            if len(buffer) == LOG_EVERY or due or save:
                advance(state.step, f"loss {report()['loss']:.4f}")
            for hook in due if log else []:
                event = hook.run(state.step, state.ema.model, state.extra)
                if event and log:
                    log.write({"step": state.step, **event})
            look()
            if save and log:
                state.save(directory / "checkpoint")
            saved = time.monotonic() if save else saved
        if buffer:
            report()
        look(over=True)
    if log:
        state.save(directory / "checkpoint")
        log.close()
    runtime.wait()
    if not log:
        raise PartDone
    return Trained(state.ema.model, state.step, state.step >= steps, state.extra, clock.paused)


def passes_of(task: Task, runtime: Runtime, model: nn.Module) -> Passes:
    """The forward and backward pass of a step, recorded where the runtime can."""
    def run(batch: Batch, step: int) -> tuple[torch.Tensor, Parts]:
        with runtime.autocast():
            loss, parts = task.loss(model, runtime.share(batch), step)
        runtime.backward(loss)
        return loss.detach(), parts

    return Passes(task.model, run, runtime.device, runtime.recorder)


def train_step(
    task: Task, runtime: Runtime, passes: Passes, state: TrainState, batch: Batch,
    config: OptimizerConfig, steps: int, seed: int,
) -> Parts:  # fmt: skip
    """One step of the loop: forward, backward, optimiser, EMA; `state.step` moves on. Returns the scalars to log."""
    torch.manual_seed(key(seed, task.name, "step", state.step) + runtime.rank)  # dropout and the like
    loss, parts = passes(batch, state.step)
    norm = _update(state, config, steps)
    state.step += 1
    return {"loss": loss, **parts, "grad_norm": norm}


def _update(state: TrainState, config: OptimizerConfig, steps: int) -> torch.Tensor:
    """One step of the optimiser and of the EMA. Returns the norm of the gradient before clipping."""
    rate = learning_rate(config, state.step, steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip or math.inf)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(state.model, state.step)
    return norm


def make_optimizer(task: Task, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser of the configuration; weight decay only on matrices and kernels, as is the custom."""
    groups = []
    for given in task.learning_rates(task.model) if task.learning_rates else [{"params": task.model.parameters()}]:
        trainable = [p for p in given["params"] if p.requires_grad]
        scale = given.get("scale", 1.0)
        groups.append({"params": [p for p in trainable if p.ndim > 1], "scale": scale})
        groups.append({"params": [p for p in trainable if p.ndim <= 1], "scale": scale, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.name == "sgd":
        momentum = MOMENTUM if config.momentum is None else config.momentum
        return torch.optim.SGD(groups, momentum=momentum, **common)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, betas=config.betas, **common)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of a step: linear warm-up, then constant or a half cosine to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.lr
    share = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def ahead(batch: Callable[[int], Batch], start: int, stop: int, loaders: int = 1) -> Iterator[Batch]:
    """Batches start .. stop-1, the next ones loaded by so many threads while the device works; several threads take
    one core each, for teams of threads would wait for one another.
    """
    threads, alone = torch.get_num_threads(), None if loaders == 1 else partial(torch.set_num_threads, 1)
    try:
        with ThreadPoolExecutor(loaders, LOADER, initializer=alone) as pool:
            waiting = deque(pool.submit(batch, step) for step in range(start, min(start + loaders, stop)))
            for step in range(start + loaders, stop + loaders):
                current = waiting.popleft().result()
                if step < stop:
                    waiting.append(pool.submit(batch, step))
                yield current
    finally:
        if alone:
            torch.set_num_threads(threads)  # also of threads that are still to come


def _flush(buffer: list[tuple[int, Parts]], optimizer: str, directory: Path) -> dict[str, Any]:
    """Means over the buffered steps as one log row; DCubeError at the first step whose loss is not finite."""
    names = list(buffer[0][1])
    table = torch.stack([torch.stack([parts[n].float() for n in names]) for _, parts in buffer]).cpu()  # one wait
    for (step, _), row in zip(buffer, table, strict=True):
        if not torch.isfinite(row).all():
            parts = ", ".join(f"{n} {v:.4g}" for n, v in zip(names, row.tolist(), strict=True))
            good = checkpoints(directory / "checkpoint")[-1]
            raise DCubeError(
                f"The loss is not finite at step {step} ({parts}); lower {optimizer}.lr or set"
                f" {optimizer}.dtype=fp32. The last good checkpoint is {good}."
            )
    row = {"step": buffer[-1][0], **dict(zip(names, table.mean(0).tolist(), strict=True))}
    buffer.clear()
    return row


def _begin(state: TrainState, directory: Path, is_main: bool) -> Log | None:
    """Go on from the last checkpoint; the main process keeps the first one and the log, and removes what a killed
    process left half-written.
    """
    if not is_main:
        state.resume(directory / "checkpoint")
        return None
    for left_over in directory.glob(".*.tmp.*"):
        left_over.unlink()
    if not state.resume(directory / "checkpoint"):
        state.save(directory / "checkpoint")
    return Log(directory / "log.jsonl", state.step)


def keep_choice(
    runtime: Runtime, task: Task, log: Log | None, directory: Path, config: OptimizerConfig, steps: int
) -> None:
    """A training keeps the dtype, the attention and the compilation it began with, also when it is continued on
    another machine. A step takes two images, at most, for each of its batch.
    """
    file = directory / "runtime.json"
    begun = {"attention": "sdpa", "compile": "never"} | read_json(file) if file.exists() else {}
    runtime.wait()  # for those who have not looked yet: the first process writes that file
    if begun:
        runtime.keep(begun["dtype"], begun["attention"], begun["compile"])
        if task.trials:
            runtime.compile_again(task.trials)
    elif task.trials:
        runtime.choose(task.trials)
        runtime.try_compile(task.trials, task.model, 2 * config.batch_size, steps)
    chosen = runtime.apply(task.model)
    if begun and begun | chosen == begun:
        return
    if log:
        device = {"device": str(runtime.device)}
        write_json(file, {**chosen, **device, "milliseconds": runtime.milliseconds or begun.get("milliseconds")})
        if runtime.milliseconds:
            log.write({"step": 0, "event": "runtime", **chosen, **device})
