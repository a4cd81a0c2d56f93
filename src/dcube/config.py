"""The whole experiment as one tree of frozen, validated models. `recipes/*.yaml` are its instances."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A part of the experiment: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """How files become pixels, splits and batches."""

    size: Annotated[int, Field(ge=8)] = 256  # stored height and width, pixels
    channels: Literal["auto", 1, 3] = "auto"  # auto: 1 if every file is grey, else 3
    aspect: Literal["pad", "squash", "crop"] = "pad"
    val_fraction: Fraction = 0.15  # used only where the data bring no split
    test_fraction: Fraction = 0.15
    max_broken: Fraction = 0.05  # share of unreadable files above which the set is refused
    horizontal_flip: bool = True  # false where left and right mean something
    balance: Literal["none", "sampler", "weights"] = "sampler"  # of step 2, against class imbalance


class OptimizerConfig(Section):
    """AdamW and the length of a training; exactly one of `steps` and `epochs`."""

    lr: Positive = 2e-4
    weight_decay: NonNegative = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    batch_size: Count = 32
    steps: Count | None = None
    epochs: Positive | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["constant", "cosine"] = "constant"
    grad_clip: Positive | None = 1.0
    ema_decay: Fraction = 0.999
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # of the forward passes; auto: bf16 where the hardware has it

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self

    def total_steps(self, images: int) -> int:
        """Optimiser steps for a training set of `images`."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * images / self.batch_size))


class UViTConfig(Section):
    """U-ViT (Bao et al., CVPR 2023); the defaults are the paper's "small"."""

    patch: Count = 8
    width: Count = 512
    depth: Annotated[int, Field(ge=2, multiple_of=2)] = 12  # in- and out-blocks; one middle block more
    heads: Count = 8
    mlp_ratio: Positive = 4.0


class UNetConfig(Section):
    """Convolutional U-Net for small budgets: one residual layer per level, attention at the lowest."""

    patch: Count = 1  # pixels un-shuffled into channels before the first level
    widths: Annotated[tuple[Count, ...], Field(min_length=2)] = (32, 64, 96, 128)
    groups: Count = 8
    dropout: Fraction = 0.0


def _yaml_word(value: object) -> object:
    """YAML reads the words null and true as values; here they are names."""
    if value is None:
        return "null"
    return "true" if value is True else value


class ContrastiveConfig(Section):
    """Eq. 4. `paper`: L2 over the flattened middle block, summed; `pooled`: L2 of unit-length means."""

    weight: NonNegative = 1.0
    distance: Literal["paper", "pooled"] = "pooled"
    label: Annotated[Literal["null", "true"], BeforeValidator(_yaml_word)] = "null"  # what the features of eq. 4 see
    margin: Positive = 0.1


class DiffusionConfig(Section):
    """Step 1: the class-conditional denoiser (eq. 1-5)."""

    image_size: Annotated[int, Field(ge=8)] = 128
    backbone: Literal["uvit", "unet"] = "unet"
    uvit: UViTConfig = UViTConfig()
    unet: UNetConfig = UNetConfig()
    timesteps: Count = 1000
    beta_start: Positive = 1e-4
    beta_end: Positive = 0.02
    label_dropout: Fraction = 0.15
    contrastive: ContrastiveConfig = ContrastiveConfig()
    augment: bool = False  # random horizontal flip in step 1
    optimizer: OptimizerConfig = OptimizerConfig(steps=1000)
    sample_every: Positive = 50.0  # epochs between sample grids in the log
    sample_steps: Count = 50  # DDIM steps
    guidance_scale: NonNegative = 1.0  # 1: the conditional model as it is


class FeaturesConfig(Section):
    """Taps and the Gaussianity test (eq. 6, figure 2)."""

    reading: Literal["channel_mean", "token_mean", "all_values", "per_image"] = "channel_mean"
    timestep: Annotated[int, Field(ge=0)] = 100  # of the test
    batch_size: Count = 256  # images of the test
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    top_k: Count = 3  # blocks taken where none has p < alpha
    select: Literal["least_gaussian", "most_gaussian"] = "least_gaussian"  # the second: table VI's worst
    blocks: tuple[int, ...] | None = None  # a forced choice
    input: Literal["clean", "noised", "clean_t0"] = "clean"  # table VII
    # of step 2; None: a random t per image (the paper)
    timesteps: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    eval_timesteps: Annotated[tuple[int, ...], Field(min_length=1)] = (10, 50, 100, 200)
    cache_gb: NonNegative = 8.0  # bound on a feature cache on disk (training and validation have one each); 0: none

    @property
    def training_timesteps(self) -> tuple[int, ...] | None:
        """The fixed set of step 2, None for random ones; with `clean_t0` there is nothing but 0."""
        return (0,) if self.input == "clean_t0" else self.timesteps

    @property
    def prediction_timesteps(self) -> tuple[int, ...]:
        """The fixed set that predictions are averaged over."""
        return (0,) if self.input == "clean_t0" else self.eval_timesteps


class ClassifierConfig(Section):
    """Step 2: the sub-feature CNN, the fusion head and eq. 7-10."""

    cnn: str = "tf_efficientnet_lite0"  # any timm model
    cnn_weights: str = "auto"  # auto | offline | hub | none | a file
    cnn_size: Annotated[int, Field(ge=32)] = 128
    cnn_lr_scale: NonNegative = 1.0  # learning rate of the CNN relative to the head's
    head: Literal["paper", "late"] = "paper"
    grid: Count = 16  # height and width of the map that the blocks are brought to
    width: Count = 512  # channels of f_main and f_sub
    dropout: Fraction = 0.5
    lambda_cycle: NonNegative = 10.0  # lambda_1 of eq. 10
    lambda_consistency: NonNegative = 0.1  # lambda_2 of eq. 10
    cycle_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # random part of the batch eq. 7 is taken on
    optimizer: OptimizerConfig = OptimizerConfig(epochs=50)
    validate_every: Positive = 1.0  # epochs


class EvaluationConfig(Section):
    """Figures and their intervals."""

    bootstrap: Annotated[int, Field(ge=100)] = 2000  # resamples of groups
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    without: tuple[tuple[str, ...], ...] = ()  # class sets left out in additional figures (known shortcuts)
    floors: bool = True  # majority, simple statistics and 32x32 pixels beside the result


class RuntimeConfig(Section):
    """What changes speed, never the meaning of a result."""

    device: str = "auto"  # auto | cpu | cuda | mps
    threads: Annotated[int, Field(ge=0)] = 0  # of torch on a CPU; 0: all cores
    checkpoint_seconds: NonNegative = 60.0


class Experiment(Section):
    """Everything that determines a run, except the data."""

    recipe: str = "custom"
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig = DataConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    features: FeaturesConfig = FeaturesConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        uvit, unet, size = self.diffusion.uvit, self.diffusion.unet, self.diffusion.image_size
        unit, name = {
            "uvit": (uvit.patch, "diffusion.uvit.patch"),
            "unet": (unet.patch * 2 ** (len(unet.widths) - 1), "by which the U-Net's levels shrink an image"),
        }[self.diffusion.backbone]
        if size % unit:
            raise ValueError(f"diffusion.image_size {size} is not a multiple of {unit}, {name}")
        if uvit.width % uvit.heads:
            raise ValueError(f"diffusion.uvit.width {uvit.width} is not a multiple of its heads, {uvit.heads}")
        if wrong := [width for width in unet.widths if width % unet.groups]:
            raise ValueError(f"diffusion.unet.widths {wrong[0]} is not a multiple of its groups, {unet.groups}")
        if not self.data.horizontal_flip and (self.classifier.lambda_consistency or self.diffusion.augment):
            raise ValueError(
                "data.horizontal_flip is off, so classifier.lambda_consistency must be 0 and diffusion.augment false:"
                " both treat an image and its mirror image as the same"
            )
        if self.classifier.optimizer.batch_size < 2:
            raise ValueError("classifier.optimizer.batch_size must be at least 2, for batch normalisation")
        steps = (*(self.features.timesteps or ()), *self.features.eval_timesteps, self.features.timestep)
        if min(steps) < 0 or max(steps) >= self.diffusion.timesteps:
            raise ValueError(f"every timestep of features must lie in 0 .. {self.diffusion.timesteps - 1}")
        if self.data.val_fraction + self.data.test_fraction >= 1:
            raise ValueError("data.val_fraction + data.test_fraction must stay below 1")
        return self
