"""What a stage depends on, as digests: where one changes, the stage is done again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.errors import DCubeError, InputError
from dcube.files import digest, file_digest, read_json
from dcube.runs import Run
from dcube.training.state import load_weights, unreadable

OWN = "RUN/unlabelled/diffusion/model.safetensors"  # of the training without labels in a run's own folder


def step1_inputs(run: Run, settings: Experiment, begun_with: dict[str, Any]) -> str:
    """Digest of all that step 1 depends on, and of how it draws, which its weights remember; what only looks at it is
    left out.

    begun_with: of `initial_weights`.
    """
    config = settings.diffusion
    relevant = config.model_dump(mode="json", exclude={"init", "probe_minutes", "probe_blocks"})
    more: list[Any] = [begun_with["digest"]] if config.init else []
    if config.augmentation.probability:
        more.append(settings.data.horizontal_flip)
    if config.align.weight:
        more.append(cnn_weights(settings))
    return digest([run.store_key(), file_digest(run.split), settings.seed, relevant, *more])


def initial_weights(run: Run, settings: Experiment, data: ImageData) -> dict[str, Any]:
    """What is known of `diffusion.init`: file, digest, and the images it has seen. Once step 1 has begun, the run
    itself remembers that, and the file may go.

    Raises InputError where there is no such file, or where it has seen images that this run is to be judged by.
    """
    init, record = settings.diffusion.init, run.diffusion / "init.json"
    path = initial_file(run, settings)
    if path is None:
        return {"file": None, "digest": None, "seen": {}}
    if not path.is_file() and record.is_file():
        remembered: dict[str, Any] = read_json(record)
        return remembered
    if not path.is_file():
        check_initial_weights(settings)
    seen = load_weights(path)[1].get("seen", {})
    if known := data.seen_by(seen):
        raise InputError(
            f"diffusion.init={init} was trained on {known} images that {run.path} is to be judged by; use weights of"
            " other images, or the seed and the fractions of the split that they were made with."
        )
    return {"file": str(path), "digest": file_digest(path), "seen": seen}


def initial_file(run: Run, settings: Experiment) -> Path | None:
    """The file that `diffusion.init` names, in the run's own folder where it is OWN; None without."""
    init = settings.diffusion.init
    return run.path / OWN.removeprefix("RUN/") if init == OWN else None if init is None else Path(init)


def check_initial_weights(settings: Experiment) -> None:
    """InputError where `diffusion.init` names no file."""
    init = settings.diffusion.init
    if init == OWN:
        raise InputError(
            f"diffusion.init={OWN} is what `dcube fit --unlabelled` makes; repeat that command, or begin with another"
            " recipe than the run's own experiment.yaml."
        )
    if init is not None and not Path(init).is_file():
        raise InputError(f"diffusion.init={init} is not a file; give the model.safetensors of another step 1.")


def cnn_weights(settings: Experiment) -> list[str]:
    """The CNN's weights by name, and where that is a file its digest: it may change under its name."""
    own = Path(settings.classifier.cnn_weights)
    return [settings.classifier.cnn_weights, *([file_digest(own)] if own.is_file() else [])]


def weights_digest(path: Path) -> str:
    """The same for equal weights and metadata; the file's own is not, safetensors writing metadata in any order.
    DCubeError for a damaged file.
    """
    with open(path, "rb") as handle:
        try:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        except (ValueError, OverflowError, MemoryError) as error:
            raise DCubeError(unreadable(path, error)) from error
        return digest([header, hashlib.file_digest(handle, "sha256").hexdigest()])
