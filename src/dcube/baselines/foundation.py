"""Foundation models of table I: RADIO fully tuned, with LoRA or under a linear probe; MedCLIP's vision tower."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from dcube.baselines.backbones import Builder, Request, timm_features
from dcube.baselines.base import Normalise, System
from dcube.baselines.weights import file_tensors, load_into, loud
from dcube.errors import InputError

LORA_RANK, LORA_ALPHA = 8, 16  # ours: the paper gives neither, nor the layers; here those of the attention
MEDCLIP_SIZE = 224
MEDCLIP_MEAN, MEDCLIP_STD = 0.5862785803, 0.27950088968
SWIN = "swin_tiny_patch4_window7_224"
Tuning = Literal["full", "lora", "linear"]


class Foundation(System):
    """A pretrained network that pools to [B, D], and a linear layer on it.

    tuning: "full" trains all of it, "lora" low-rank additions to the attention's matrices, "linear" the last layer
    alone (the network then stays in evaluation mode).
    """

    def __init__(self, backbone: Any, normalise: nn.Module, num_classes: int, tuning: Tuning) -> None:
        super().__init__()
        self.tuning, width = tuning, int(backbone.num_features)
        if tuning != "full":
            backbone.requires_grad_(False)
        self.normalise = normalise
        self.backbone = with_lora(backbone) if tuning == "lora" else backbone
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tuning != "linear"):
            pooled = self.backbone(self.normalise(images))
        logits: torch.Tensor = self.head(pooled)
        return logits

    def train(self, mode: bool = True) -> "Foundation":
        super().train(mode)
        if self.tuning == "linear":
            self.backbone.eval()
        return self


def with_lora(backbone: nn.Module) -> nn.Module:
    """The network with LoRA (Hu et al., ICLR 2022) on the matrices of its attention; only they are trained."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("LoRA needs an extra: pip install 'dcube-med[transformers]'.") from error
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=r".*attn\.(qkv|proj)")
    adapted: nn.Module = inject_adapter_in_model(config, backbone)
    return adapted


def foundation(name: str, tuning: Tuning) -> Builder:
    """A network of timm as a foundation model."""

    def build(request: Request) -> tuple[System, str]:
        backbone, source = timm_features(name, request)
        settings = backbone.pretrained_cfg
        normalise = Normalise(settings["mean"], settings["std"])
        if source.startswith("ImageNet"):
            source = f"{name} (timm)"
        return Foundation(backbone, normalise, request.num_classes, tuning), source

    return build


class MedCLIPImages(nn.Module):
    """MedCLIP's own preprocessing: grey, 224 px, its mean and deviation, repeated to 3 channels. [B, C, S, S]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(1, keepdim=True)
        if grey.shape[-1] != MEDCLIP_SIZE:
            size = (MEDCLIP_SIZE, MEDCLIP_SIZE)
            grey = F.interpolate(grey, size, mode="bilinear", antialias=True, align_corners=False)
        return ((grey - MEDCLIP_MEAN) / MEDCLIP_STD).expand(-1, 3, -1, -1)


def medclip(request: Request) -> tuple[System, str]:
    """Linear probe on MedCLIP's Swin-T, before its projection (768 values). Weights only from a person's own file."""
    import timm

    tower: Any = timm.create_model(SWIN, pretrained=False, num_classes=0)
    if request.file is not None:
        tensors = swin_from_transformers(file_tensors(request.file))
        load_into(tower, tensors, request.file, head="head")
        source = f"file {request.file.name}"
    elif request.weights == "none":
        source = "random"
    else:
        source = loud("RANDOM: MedCLIP's weights come only from a file of yours")
    return Foundation(tower, MedCLIPImages(), request.num_classes, "linear"), source


RENAMED = (  # transformers' names -> timm's
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.norm", "patch_embed.norm"),
    ("encoder.layers", "layers"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.self.relative_position_bias_table", "attn.relative_position_bias_table"),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layernorm.", "norm."),
)


def swin_from_transformers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A Swin of transformers, also inside a larger model, under timm's names; other tensors are left out.

    Query, key and value become one matrix; a stage's downsampling belongs to the end of it there, and to the start of
    the next one in timm. A state dict without such a Swin comes back as it is.
    """
    anchor = "embeddings.patch_embeddings.projection.weight"
    prefix = next((name.removesuffix(anchor) for name in tensors if name.endswith(anchor)), None)
    if prefix is None:
        return tensors
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix) or "relative_position_index" in name:
            continue
        name = name.removeprefix(prefix)
        for old, new in RENAMED:
            name = name.replace(old, new)
        parts = name.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) + 1)
        renamed[".".join(parts)] = tensor
    for name in [n for n in renamed if ".attention.self.query." in n]:
        parts3 = [renamed.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        renamed[name.replace("attention.self.query", "attn.qkv")] = torch.cat(parts3)
    return renamed
