"""What the cases share: images, weights, and the program's own training step."""

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.images import store_of
from benchmarks.reference.denoiser import PlainDenoiser
from benchmarks.sizes import Size
from dcube.classifier.model import DCubeClassifier, predictor_dtype
from dcube.config import Experiment, OptimizerConfig
from dcube.data.dataset import ImageData
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.build import build_denoiser
from dcube.diffusion.train import Diffusion, frozen_diffusion
from dcube.features.frozen import FrozenFeatures, frozen_dtype
from dcube.training.compiled import compiled_parts
from dcube.training.ema import EMA
from dcube.training.graphs import LOADER
from dcube.training.loop import Batch, Parts, Task, keep_choice, make_optimizer, passes_of, train_step
from dcube.training.order import torch_rng
from dcube.training.runtime import Runtime
from dcube.training.state import TrainState

GPU_STEPS = 10  # of a training in one call
STEPS = 1_000_000  # of the learning rate's schedule; no case comes near
NOISE = 0.02  # added to every weight: layers that begin at zero would hide mistakes


class World:
    """One size on one device. `folder` takes stores, caches and files; the caller removes it."""

    def __init__(self, size: Size, device: torch.device, folder: Path, seed: int = 0, classes: int = 3) -> None:
        self.size, self.device, self.folder, self.seed = size, device, folder, seed
        self.experiment, self.classes = size.experiment(), classes

    @cached_property
    def data(self) -> ImageData:
        """The store, all of it for training."""
        return store_of(self.folder / "store", self.size.images, self.experiment.data, self.classes)

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """Tensors of the denoiser that both sides begin with."""
        return {name: v.clone() for name, v in self.new_denoiser().state_dict().items()}

    def new_denoiser(self) -> Denoiser:
        """The program's denoiser, the same weights each time."""
        torch.manual_seed(self.seed)
        model = build_denoiser(self.experiment.diffusion, 1, self.classes)
        perturb(model, self.seed)
        return model

    @cached_property
    def diffusion(self) -> Diffusion:
        """The program's frozen step 1."""
        config, classes = self.experiment.diffusion, self.data.classes
        return frozen_diffusion(self.new_denoiser(), config, 1, classes, self.device)

    @cached_property
    def frozen(self) -> FrozenFeatures:
        """The program's features of the selected blocks, in the dtype that a training takes."""
        return self.features(frozen_dtype(self.experiment.features.dtype, self.device, self.folder))

    @cached_property
    def exact(self) -> FrozenFeatures:
        """The same in the dtype of predictions, by default float32."""
        return self.features(predictor_dtype(self.experiment.features, self.device))

    def features(self, dtype: torch.dtype) -> FrozenFeatures:
        """The program's features of the selected blocks."""
        return FrozenFeatures(self.diffusion, list(self.size.blocks), "clean", self.experiment.classifier.grid, dtype)

    def plain(self, trainable: bool = False) -> PlainDenoiser:
        """The reference's denoiser on its own copy of the weights."""
        weights = {name: v.to(self.device) for name, v in self.weights.items()}
        return PlainDenoiser(weights, self.experiment.diffusion, trainable)

    def new_classifier(self, experiment: Experiment) -> DCubeClassifier:
        """CNN and head, the same weights each time."""
        widths = [shape[0] for shape in self.exact.shapes]
        torch.manual_seed(self.seed)
        model = DCubeClassifier(experiment.classifier, self.classes, widths)
        perturb(model, self.seed)
        return model


class Training:
    """The program's training loop, `steps` steps per call: what `dcube.training.loop.train` does between two log rows,
    the next batches being made by threads meanwhile. On a GPU a call is several steps, for it works behind the program
    and a single one would have its batch made on the other side's clock.
    """

    def __init__(self, task: Task, config: OptimizerConfig, world: World) -> None:
        self.task, self.config, self.seed = task, config, world.seed
        settings = world.experiment.runtime.model_copy(update={"device": world.device.type})
        self.runtime = Runtime(settings, config.dtype)
        model = self.runtime.prepare(task.model)
        self.state = TrainState(task.model, make_optimizer(task, config), EMA(task.model, config.ema_decay))
        keep_choice(self.runtime, task, None, world.folder, config, STEPS)  # by the trial at the start
        self.passes = passes_of(task, self.runtime, model)
        self.steps = GPU_STEPS if world.device.type == "cuda" else 1
        alone = partial(torch.set_num_threads, 1) if self.runtime.loaders > 1 else None  # as in the loop
        self.pool = ThreadPoolExecutor(self.runtime.loaders, LOADER, initializer=alone)
        self.batches = deque(self._load(step) for step in range(self.runtime.loaders))

    def __call__(self) -> Parts:
        """The steps; returns what the first of them gives. Ends when the next batches are there, so that nothing of
        them runs on the other side's clock.
        """
        parts = [self._step() for _ in range(self.steps)]
        wait(self.batches)
        return parts[0]

    def plain(self) -> None:
        """The same, kernel by kernel, so that the operations can be seen."""
        recorder, self.passes.record = self.passes.record, None
        self()
        self.passes.record = recorder

    @property
    def how(self) -> str:
        """How its steps run on a GPU; on a CPU nothing of this is a question."""
        if self.runtime.device.type != "cuda":
            return ""
        compiled = self.runtime.compile == "always" and bool(compiled_parts(self.task.model))
        states = {"recorded": self.passes.recording is not None, "compiled": compiled}
        return "its steps were " + " and ".join(f"{'' if done else 'not '}{word}" for word, done in states.items())

    def _step(self) -> Parts:
        batch = self.batches.popleft().result()
        self.batches.append(self._load(self.state.step + self.runtime.loaders))
        return train_step(
            self.task, self.runtime, self.passes, self.state, batch, self.config, STEPS, self.seed
        )  # fmt: skip

    def _load(self, step: int) -> Future[Batch]:
        return self.pool.submit(lambda: self.runtime.pin(self.task.batch(step)))

    def side(self) -> tuple["Training", float]:
        """A call, and how often it counts as one step."""
        return self, 1 / self.steps


def perturb(model: nn.Module, seed: int) -> None:
    """Add noise to every parameter."""
    generator = torch_rng(seed, "benchmark weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator))


def to(device: torch.device, batch: Batch) -> Batch:
    """A batch on a device."""
    return {name: value.to(device) for name, value in batch.items()}


def difference(ours: Any, reference: Any) -> float:
    """Relative L2 difference of two results: |ours - reference| / |reference|, in float64."""
    a, b = (torch.as_tensor(v).detach().double().cpu().flatten() for v in (ours, reference))
    scale = float(torch.linalg.vector_norm(b))
    return float(torch.linalg.vector_norm(a - b)) / (scale if scale > 0 else math.nan)


