"""Every system of the field by name. A new one is a line of REGISTRY: a builder, its citation, size and recipe."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dcube.baselines.backbones import Builder, Request, timm_network, torchvision_network, transformers_network
from dcube.baselines.base import System
from dcube.baselines.cpt import BASE, SMALL, cpt_style
from dcube.baselines.diffmic import diffmic
from dcube.baselines.foundation import foundation, medclip
from dcube.baselines.guidance import guided
from dcube.baselines.t2t import t2t_vit
from dcube.errors import InputError
from dcube.features.subnet import OFFLINE_MODEL

NAMED = "by name where the network allows, or a file; else random, said so"
PACKAGED = "the extra `offline`, by name, or a file"
SCRATCH = "random, or a file"
OWN_FILE = "a file of one's own; else random, said so"
SMALLEST, LARGEST = 32, 1024  # image sizes in pixels
# timm's files of networks that are trained as transformers are, hybrids among them; all others as CNNs
ATTENTION = frozenset({
    "beit", "cait", "coat", "convit", "crossvit", "davit", "deepseek_vit", "deit", "edgenext", "efficientformer",
    "efficientformer_v2", "efficientvit_mit", "efficientvit_msra", "eva", "fastvit", "gcvit", "gemma4_vit", "hiera",
    "hieradet_sam2", "iformer", "levit", "lowformer", "maxxvit", "metaformer", "mlp_mixer", "mobilevit", "mvitv2",
    "naflexvit", "nest", "nextvit", "pit", "pvt_v2", "qwen3_vit", "sequencer", "shvit", "swiftformer",
    "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit", "tnt", "twins",
    "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam",
    "visformer", "vitamin", "volo", "xcit",
})  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A row of the paper's table IX: how a system is trained there. row: whose row it is, or why it is not in it.

    rates: ours, the learning rates of AdamW that are tried where every system gets one equal budget.
    """

    row: str
    optimizer: Literal["sgd", "adamw", "adam"]
    lr: float
    weight_decay: float
    epochs: int
    rates: tuple[float, ...]


CNN_RATES, ATTENTION_RATES = (1e-3, 3e-4), (5e-4, 1e-4)
RESNET = Recipe("ResNet-101, ResNeXt-101", "sgd", 1e-3, 1e-4, 50, CNN_RATES)
SHUFFLENET = Recipe("ShuffleNet V2", "sgd", 1e-3, 5e-5, 50, CNN_RATES)
VIT = Recipe("ViT-B/16", "adamw", 6e-6, 0.3, 200, ATTENTION_RATES)
MIT = Recipe("MiT-b0", "adamw", 8e-6, 1e-2, 100, ATTENTION_RATES)
CVT = Recipe("CvT", "adamw", 6.5e-5, 1e-2, 100, ATTENTION_RATES)
PVT2 = Recipe("PVT v2-b0", "adamw", 1e-5, 1e-2, 50, ATTENTION_RATES)
PVT1 = Recipe("PVT-tiny", "adamw", 8e-6, 1e-2, 50, ATTENTION_RATES)
CPT = Recipe("CPT", "adamw", 5e-5, 1e-2, 50, ATTENTION_RATES)
DIFFMIC = Recipe("none in table IX: DiffMIC's own", "adam", 1e-3, 0.0, 1000, CNN_RATES)
GUIDANCE = Recipe("none in table IX: DiffMIC's own, of its guidance", "adam", 2e-4, 0.0, 15, (1e-3, 2e-4))


def nearest(recipe: Recipe) -> Recipe:
    """The row of the nearest family, for a system without one."""
    return replace(recipe, row=f"none in table IX: that of {recipe.row}")


@dataclass(frozen=True)
class Baseline:
    """A system of the field: what it is called, how it is built, who published it, and how the paper trains it."""

    title: str
    build: Builder
    citation: str
    weights: str  # where its first weights come from
    recipe: Recipe
    size: int = 224  # pixels it was published for; others work


LIKE_RESNET, LIKE_VIT = nearest(RESNET), nearest(VIT)
LIKE_LORA, LIKE_PROBE = replace(LIKE_VIT, rates=(1e-3, 3e-4)), replace(LIKE_VIT, rates=(1e-2, 1e-3))
LITE0, LITE0_SOURCE = OFFLINE_MODEL, "Tan and Le, ICML 2019; timm"
RADIO, RADIO_PAPER = "vit_base_patch16_radio_v3.c_radio", "Ranzinger et al., CVPR 2024; C-RADIO v3, ViT-B/16"
CPT_PAPER, DIFFMIC_PAPER = "after Viriyasaranon et al., JBHI 2023", "Yang et al., MICCAI 2023"
SHUFFLE = torchvision_network("shufflenet_v2_x1_0")
CVT_13 = transformers_network("Cvt", "microsoft/cvt-13")
MIT_B0 = transformers_network("Segformer", "nvidia/mit-b0")
PVT_TINY = transformers_network("Pvt", "Zetatech/pvt-tiny-224", sized=True)
SMALL_CHAIN: dict[str, Any] = {"width": 512, "steps": 50, "draws": 4, "pretraining": 0.6, "spread": 0.3}  # ours
DIFFMIC_RESNET18 = diffmic("resnet18", **SMALL_CHAIN)
DIFFMIC_LITE0 = diffmic(OFFLINE_MODEL, **SMALL_CHAIN)

REGISTRY: dict[str, Baseline] = {
    "resnet101": Baseline("ResNet-101", timm_network("resnet101"), "He et al., CVPR 2016", NAMED, RESNET),
    "resnext101": Baseline("ResNeXt-101 32x8d", timm_network("resnext101_32x8d"), "Xie, CVPR 2017", NAMED, RESNET),
    "resnest101": Baseline("ResNeSt-101", timm_network("resnest101e"), "Zhang, CVPRW 2022", NAMED, LIKE_RESNET, 256),
    "shufflenet_v2": Baseline("ShuffleNet V2 x1.0", SHUFFLE, "Ma et al., ECCV 2018", NAMED, SHUFFLENET),
    "t2t_vit_7": Baseline("T2T-ViT-7", t2t_vit(7), "Yuan et al., ICCV 2021", SCRATCH, LIKE_VIT),
    "t2t_vit_14": Baseline("T2T-ViT-14", t2t_vit(14), "Yuan et al., ICCV 2021", SCRATCH, LIKE_VIT),
    "vit_b16": Baseline("ViT-B/16", timm_network("vit_base_patch16_224"), "Dosovitskiy, ICLR 2021", NAMED, VIT),
    "vit_ti16": Baseline("ViT-Ti/16", timm_network("vit_tiny_patch16_224"), "Touvron, ICML 2021", NAMED, LIKE_VIT),
    "cvt_13": Baseline("CvT-13", CVT_13, "Wu et al., ICCV 2021", NAMED, CVT),
    "mit_b0": Baseline("MiT-b0 (SegFormer)", MIT_B0, "Xie et al., NeurIPS 2021", NAMED, MIT),
    "pit_b": Baseline("PiT-B", timm_network("pit_b_224"), "Heo et al., ICCV 2021", NAMED, LIKE_VIT),
    "pvt_v2_b0": Baseline("PVT v2-b0", timm_network("pvt_v2_b0"), "Wang et al., CVMJ 2022", NAMED, PVT2),
    "pvt_tiny": Baseline("PVT-tiny", PVT_TINY, "Wang et al., ICCV 2021", NAMED, PVT1),
    "densenet121": Baseline("DenseNet-121", timm_network("densenet121"), "Huang, CVPR 2017", NAMED, LIKE_RESNET),
    "resnet18": Baseline("ResNet-18", timm_network("resnet18"), "He et al., CVPR 2016", NAMED, LIKE_RESNET),
    "efficientnet_lite0": Baseline("EfficientNet-Lite0", timm_network(LITE0), LITE0_SOURCE, PACKAGED, LIKE_RESNET),
    "cpt": Baseline("CPT-style (widths ours)", cpt_style(BASE), CPT_PAPER, SCRATCH, CPT),
    "cpt_small": Baseline("CPT-style, small (widths ours)", cpt_style(SMALL), CPT_PAPER, SCRATCH, CPT),
    "diffmic": Baseline("DiffMIC", diffmic("resnet50", "resnet18"), DIFFMIC_PAPER, NAMED, DIFFMIC),
    "diffmic_resnet18": Baseline("DiffMIC, small", DIFFMIC_RESNET18, DIFFMIC_PAPER, NAMED, DIFFMIC),
    "diffmic_lite0": Baseline("DiffMIC, small, EfficientNet-Lite0", DIFFMIC_LITE0, DIFFMIC_PAPER, PACKAGED, DIFFMIC),
    "guidance": Baseline("DiffMIC's guidance", guided("resnet50"), DIFFMIC_PAPER, NAMED, GUIDANCE),
    "guidance_resnet18": Baseline("DiffMIC's guidance, ResNet-18", guided("resnet18"), DIFFMIC_PAPER, NAMED, GUIDANCE),
    "guidance_lite0": Baseline("DiffMIC's guidance, Lite0", guided(LITE0), DIFFMIC_PAPER, PACKAGED, GUIDANCE),
    "radio_full": Baseline("RADIO, full tuning", foundation(RADIO, "full"), RADIO_PAPER, NAMED, LIKE_VIT),
    "radio_lora": Baseline("RADIO + LoRA", foundation(RADIO, "lora"), RADIO_PAPER, NAMED, LIKE_LORA),
    "radio_linear": Baseline("RADIO + linear probe", foundation(RADIO, "linear"), RADIO_PAPER, NAMED, LIKE_PROBE),
    "medclip_linear": Baseline("MedCLIP + linear probe", medclip, "Wang et al., EMNLP 2022", OWN_FILE, LIKE_PROBE),
}


def baseline(name: str) -> Baseline:
    """The entry of a name, or one made for any other model of timm. InputError for a name that is neither."""
    if name in REGISTRY:
        return REGISTRY[name]
    import timm

    if not timm.is_model(name):
        from difflib import get_close_matches

        near = get_close_matches(name, {*REGISTRY, *timm.list_models()}, 3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise InputError(f"There is no model '{name}'{hint}; give a name of the list, or any model of timm.")
    module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    like = LIKE_VIT if module in ATTENTION else LIKE_RESNET
    return Baseline(name, timm_network(name), f"timm, {module}", NAMED, like)


def create(
    name: str, num_classes: int, channels: int, size: int, weights: str = "auto", weights_file: Path | str | None = None
) -> tuple[System, str]:
    """A system by its name, for images [B, channels, size, size] in [0, 1], and where its weights came from.

    channels: 1 or 3. weights: "auto" (by name, else random with a loud note), "hub" (by name or an error), "offline"
    (EfficientNet-Lite0's package), "none" (random); a weights_file (.safetensors or .pth) wins over it. Random weights
    are drawn from torch's global generator: seed it before. InputError for what cannot be built.
    """
    if channels not in (1, 3):
        raise InputError(f"Images have 1 or 3 channels here, not {channels}.")
    if num_classes < 2 or not SMALLEST <= size <= LARGEST:
        raise InputError(
            f"A system needs 2 classes or more and images of {SMALLEST} .. {LARGEST} px; got {num_classes} and {size}."
        )
    request = Request(num_classes, size, weights, Path(weights_file) if weights_file is not None else None)
    return baseline(name).build(request)
