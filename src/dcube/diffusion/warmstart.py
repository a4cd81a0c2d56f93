"""Begin a training with the weights of another step 1 (`diffusion.init`), for small sets can help each other."""

from pathlib import Path

import torch

from dcube.config import DiffusionConfig
from dcube.diffusion.backbone import Denoiser
from dcube.errors import InputError
from dcube.training.state import load_weights

TABLE = "labels.weight"
LABELLED = 0.1  # of the steps (or epochs) without labels, those with labels that follow


def labelled_phase(config: DiffusionConfig, weights: str) -> DiffusionConfig:
    """The step 1 that follows one without labels: from its `weights`, for a LABELLED part of its steps or epochs, at
    full size.
    """
    given = config.optimizer
    length: dict[str, float]
    if given.steps is not None:
        steps = max(1, round(LABELLED * given.steps))
        length = {"steps": steps, "warmup_steps": min(given.warmup_steps, steps // 4)}
    else:
        assert given.epochs is not None
        length = {"epochs": LABELLED * given.epochs, "warmup_steps": round(LABELLED * given.warmup_steps)}
    optimizer = given.model_copy(update=length)
    return config.model_copy(update={"init": weights, "optimizer": optimizer, "growth": ()})


def warm_start(model: Denoiser, classes: list[str], path: Path) -> str:
    """Load every tensor of `path` whose name and shape fit into `model`, the others stay as they were drawn.

    The label table is made anew: a class of the same name takes its row, any other starts at the null label's row plus
    what was drawn for it, so that the model begins as the unconditional one. Returns a line that says how much fitted;
    InputError where the file is missing, no step 1, or of another shape.
    """
    if not path.is_file():
        raise InputError(f"diffusion.init={path} is not a file; give the model.safetensors of another step 1.")
    tensors, metadata = load_weights(path)
    if "diffusion" not in metadata or TABLE not in tensors:
        raise InputError(f"diffusion.init={path} does not hold a step 1; give RUN/diffusion/model.safetensors.")
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("side.")}
    fitting = {name for name, tensor in own.items() if name in tensors and tensors[name].shape == tensor.shape}
    fitting.discard(TABLE)
    if not {name for name in fitting if own[name].ndim > 1}:  # biases of one length fit by chance
        raise InputError(
            f"No weights of diffusion.init={path} fit this model; give it the same diffusion.backbone and its sizes."
        )
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(tensors[name])
        if tensors[TABLE].shape[1] == own[TABLE].shape[1]:
            _fill_table(own[TABLE], classes, tensors[TABLE], metadata["classes"])
            fitting.add(TABLE)
    values = sum(own[name].numel() for name in fitting), sum(tensor.numel() for tensor in own.values())
    return f"diffusion: {len(fitting)} of {len(own)} tensors ({values[0] / values[1]:.0%} of the values) from {path}"


def _fill_table(table: torch.Tensor, classes: list[str], given: torch.Tensor, given_classes: list[str]) -> None:
    """Rows of `table` [K + 1, D] from those of another table, whose last row is the null label's too."""
    table[:-1] += given[-1]
    table[-1] = given[-1]
    for row, name in enumerate(classes):
        if name in given_classes:
            table[row] = given[given_classes.index(name)]
