"""What is looked for before anything is removed or trained: devices, batches, weights, networks, blocks."""

import sys

import torch

from dcube.config import ClassifierConfig, Experiment
from dcube.diffusion.build import build_denoiser
from dcube.errors import InputError
from dcube.features.subnet import SubNetwork
from dcube.training.runtime import check_device
from dcube.training.team import check_batch


def check_models(settings: Experiment, classifier: bool = True, cnn: bool = False) -> None:
    """InputError for a device, weights, a CNN or forced blocks that are not there. `classifier`: step 2 is to be
    trained; `cnn`: the CNN of the settings is looked at, whatever f_sub is.
    """
    check_device(settings.runtime.device)
    form, align, how = settings.diffusion.contrastive, settings.diffusion.align, settings.classifier
    least = 2 if form.pairs == "all" or form.distance == "centred" else 1  # pairs: alone, one has nothing beside it
    check_batch(settings.diffusion.optimizer.batch_size, "diffusion.optimizer.batch_size", least)
    if classifier:
        check_batch(how.optimizer.batch_size, "classifier.optimizer.batch_size", 2)  # for batch normalisation
        if cnn or how.sub_network == "cnn" or how.second_reader or "cnn" in how.covariance_readers:
            _check_cnn(how)
        if not settings.diffusion.label_dropout:
            print(
                "diffusion.label_dropout=0: features are read under the null label, which step 1 is never trained with;"
                " give 0.1 or more.", file=sys.stderr,
            )  # fmt: skip
    if align.weight:
        teacher = SubNetwork(align.cnn, how.cnn_weights, align.size)
        teacher.check_level(align.stride)
        _try(teacher, align.cnn, align.size, "diffusion.align.size")
    with torch.device("meta"):  # the structure alone
        blocks = len(build_denoiser(settings.diffusion, channels=1, num_classes=2).blocks)
    for name, forced in (
        ("features.blocks", settings.features.blocks), ("diffusion.probe_blocks", settings.diffusion.probe_blocks),
    ):  # fmt: skip
        if forced is not None and not set() < set(forced) <= set(range(blocks)):
            raise InputError(f"{name}={list(forced)}: this model has the blocks 0 .. {blocks - 1}.")


def _try(network: SubNetwork, name: str, size: int, setting: str) -> None:
    """InputError where the network does not take images of a size: some CNNs have more strides than it has pixels."""
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"{name} cannot take images of {size} px ({error}); give a larger {setting}.") from error


def _check_cnn(how: ClassifierConfig) -> None:
    network = SubNetwork(how.cnn, how.cnn_weights, how.cnn_size)
    _try(network, how.cnn, how.cnn_size, "classifier.cnn_size")
    if "cnn" in how.covariance_readers:
        _ = network.level_channels  # raises where there are no such maps
    if how.second_reader:
        network.check_level(how.second_reader)
