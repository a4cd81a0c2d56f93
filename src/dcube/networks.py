"""The shapes of the denoisers of step 1, as sections of the experiment."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dcube.sections import Count, Fraction, Positive, Section


class UViTConfig(Section):
    """U-ViT (Bao et al., CVPR 2023); the defaults are the paper's "small"."""

    patch: Count = 8
    width: Count = 512
    depth: Annotated[int, Field(ge=2, multiple_of=2)] = 12  # in- and out-blocks; one middle block more
    heads: Count = 8
    mlp_ratio: Positive = 4.0
    # images to tokens: one convolution of patch size, or 3x3 ones of stride 2 (Xiao et al. 2021; patch a power of 2)
    stem: Literal["patch", "conv"] = "patch"

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the blocks, in the order of the computation."""
        return tuple(f"block{i}" for i in range(self.depth + 1))

    def width_of(self, block: str) -> int:
        """Channels of a block."""
        return self.width

    @model_validator(mode="after")
    def _halvings(self) -> Self:
        if self.stem == "conv" and (self.patch < 2 or self.patch & (self.patch - 1)):
            raise ValueError(f"stem conv needs a patch that is a power of 2 (2, 4, 8, ...), not {self.patch}")
        return self


class UNetConfig(Section):
    """Convolutional U-Net for small budgets (Ho et al. 2020); its middle block always has attention."""

    patch: Count = 1  # pixels un-shuffled into channels before the first level
    widths: Annotated[tuple[Count, ...], Field(min_length=2)] = (32, 64, 96, 128)
    groups: Count = 8
    dropout: Fraction = 0.0
    layers: Count = 1  # residual layers per level and direction
    attention: tuple[Count, ...] = ()  # levels (1: the largest maps) with attention after each residual layer

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the blocks, in the order of the computation."""
        levels = range(1, len(self.widths) + 1)
        return (*(f"down{i}" for i in levels), "mid", *(f"up{i}" for i in reversed(levels)))

    def width_of(self, block: str) -> int:
        """Channels of a block."""
        return self.widths[-1] if block == "mid" else self.widths[int(block.lstrip("downup")) - 1]

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if wrong := [level for level in self.attention if level > len(self.widths)]:
            raise ValueError(f"attention at level {wrong[0]}, but widths has {len(self.widths)} levels")
        return self
