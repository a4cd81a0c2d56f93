"""Networks of timm, torchvision and transformers as systems: each function returns a builder for the registry."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dcube.baselines.base import IMAGENET, Network, System
from dcube.baselines.weights import file_tensors, load_into, named_or_random
from dcube.errors import InputError
from dcube.features.subnet import OFFLINE_MODEL, OFFLINE_PACKAGE, create_cnn


@dataclass(frozen=True)
class Request:
    """What a system is built for: classes, image size in pixels, weights by word ("auto", ...) or from a file."""

    num_classes: int
    size: int
    weights: str = "auto"
    file: Path | None = None


Builder: TypeAlias = Callable[[Request], tuple[System, str]]


def timm_features(name: str, request: Request) -> tuple[Any, str]:
    """A timm network without its head, and where its weights came from."""
    if request.file is not None:
        file_tensors(request.file)  # its own sentence for a file that is missing
        return create_cnn(name, str(request.file), request.size)
    packaged = name == OFFLINE_MODEL and importlib.util.find_spec(OFFLINE_PACKAGE) is not None
    if request.weights == "offline" or (request.weights == "auto" and packaged):
        return create_cnn(name, "offline", request.size)
    return named_or_random(
        name, request.weights,
        lambda: create_cnn(name, "hub", request.size)[0], lambda: create_cnn(name, "none", request.size)[0],
        "ImageNet (timm)",
    )  # fmt: skip


def timm_network(name: str) -> Builder:
    """Any classifier of timm; networks of a fixed input size are built for the size asked for."""

    def build(request: Request) -> tuple[System, str]:
        network, source = timm_features(name, request)
        network.reset_classifier(request.num_classes)
        settings = network.pretrained_cfg
        return Network(network, settings["mean"], settings["std"]), source

    return build


def torchvision_network(name: str, head: str = "fc") -> Builder:
    """A classifier of torchvision whose last layer is the linear `head`."""

    def build(request: Request) -> tuple[System, str]:
        import torchvision
        from torch import nn

        def make(weights: str | None) -> nn.Module:
            return torchvision.models.get_model(name, weights=weights)

        if request.file is not None:
            network, source = make(None), f"file {request.file.name}"
            load_into(network, file_tensors(request.file), request.file, head)
        else:
            network, source = named_or_random(
                name, request.weights, lambda: make("DEFAULT"), lambda: make(None), "ImageNet (torchvision)"
            )
        setattr(network, head, nn.Linear(getattr(network, head).in_features, request.num_classes))
        return Network(network, *IMAGENET), source

    return build


def transformers_network(family: str, hub_name: str, sized: bool = False) -> Builder:
    """A classifier of transformers. family: "Cvt" stands for CvtConfig and CvtForImageClassification, whose default
    configuration is the size wanted. sized: it has position tables, and is built for the image size.
    """

    def build(request: Request) -> tuple[System, str]:
        transformers = _transformers()
        options: dict[str, Any] = {"num_labels": request.num_classes}
        if sized:
            options["image_size"] = request.size
        kind = getattr(transformers, f"{family}ForImageClassification")

        def random() -> Any:
            return kind(getattr(transformers, f"{family}Config")(**options))

        def named() -> Any:
            network = random()
            whole = kind.from_pretrained(hub_name)
            load_into(network, whole.state_dict(), hub_name, "classifier")
            return network

        if request.file is not None:
            network = random()
            load_into(network, file_tensors(request.file), request.file, "classifier")
            return Network(network, *IMAGENET), f"file {request.file.name}"
        network, source = named_or_random(hub_name, request.weights, named, random, "ImageNet (transformers)")
        return Network(network, *IMAGENET), source

    return build


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError("This model needs an extra: pip install 'dcube-med[transformers]'.") from error
    return transformers
