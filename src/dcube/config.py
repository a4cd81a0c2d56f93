"""The whole experiment as one tree of frozen, validated models. `recipes/*.yaml` are its instances."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from dcube.networks import UNetConfig, UViTConfig
from dcube.sections import Count, Fraction, NonNegative, OptimizerConfig, Positive, Section


class DataConfig(Section):
    """How files become pixels, splits and batches."""

    size: Annotated[int, Field(ge=8)] = 256  # stored height and width, pixels
    channels: Literal["auto", 1, 3] = "auto"  # auto: 1 if every file is grey, else 3
    aspect: Literal["pad", "squash", "crop"] = "pad"
    # of DICOM, 16-bit and float images: centre and width of the values that are told apart, in the files' units, for
    # lungs [-600, 1500] Hounsfield units; None: the 0.5 and 99.5 percentiles of a set (of what is no given test split)
    window: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    val_fraction: Fraction = 0.15  # used only where the data bring no split
    test_fraction: Fraction = 0.15
    max_broken: Fraction = 0.05  # share of unreadable files above which the set is refused
    horizontal_flip: bool = True  # false where left and right mean something
    balance: Literal["none", "sampler", "weights"] = "sampler"  # of step 2, against class imbalance

    @model_serializer(mode="wrap")
    def _without_no_window(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Younger than the runs that know nothing of it: where it is not used, it is not written."""
        found: dict[str, Any] = plain(self)
        return found if self.window else {name: value for name, value in found.items() if name != "window"}


def _yaml_word(value: object) -> object:
    """YAML reads the words null and true as values; here they are names."""
    if value is None:
        return "null"
    return "true" if value is True else value


class ContrastiveConfig(Section):
    """Eq. 4 and its relatives on the middle block.

    `form`: "pair" is eq. 4; "supervised" the supervised contrastive loss (Khosla et al. 2020) behind a projection;
    "auxiliary" the cross-entropy of a linear head. `distance` of eq. 4: "paper" L2 over the flattened block, summed
    over the batch (its weighted mean with `pairs` "all");
    "pooled" L2 of unit-length means; "centred" the same after the mean of the batch is taken off.
    """

    weight: NonNegative = 1.0
    form: Literal["pair", "supervised", "auxiliary"] = "pair"
    distance: Literal["paper", "pooled", "centred"] = "pooled"
    pairs: Literal["partner", "all"] = "partner"  # of eq. 4: one partner per image, or every pair of the batch
    label: Annotated[Literal["null", "true"], BeforeValidator(_yaml_word)] = "null"  # what the features of eq. 4 see
    margin: Positive = 0.1
    temperature: Positive = 0.1  # of "supervised"
    horizon: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of T from which this term's t comes (null label only)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.label == "true" and (self.horizon != 1 or self.form != "pair"):
            raise ValueError("contrastive.label true goes with form pair and horizon 1: it has no forward of its own")
        return self


class AlignConfig(Section):
    """Representation alignment (REPA, Yu et al. 2025): a block imitates a pretrained CNN's features of the image."""

    weight: NonNegative = 0.0  # 0: off
    # middle, or a block by its name: up2 (U-Net), block7 (U-ViT); matching: the first block on the way up whose map is
    # as large as the CNN's (U-Net), the middle one (U-ViT)
    block: str = "matching"
    cnn: str = "tf_efficientnet_lite0"  # any timm model, weights as classifier.cnn_weights says
    size: Annotated[int, Field(ge=32)] = 128  # pixels the CNN sees
    # of the CNN's map that is imitated; 32 is its last. Middle maps tell more of images unlike its own (docs/step1.md)
    stride: Literal[4, 8, 16, 32] = 16
    width: Count = 256  # hidden channels of the projector


class AugmentationConfig(Section):
    """Images changed at random in step 1, the change being told to the network, so that samples (drawn with "no
    change") do not show it: non-leaking augmentation of EDM (Karras et al. 2022, appendix F.2).

    Half of the images are mirrored (unless data.horizontal_flip is off or diffusion.augment does it). Each on its own
    with `probability`: rotation up to 15 degrees, scale by 2^(0.1 z), translation by 0.05 z of the size, brightness
    by 0.1 z, contrast by 2^(0.2 z), z standard normal; `strength` multiplies them.
    """

    probability: Annotated[float, Field(ge=0, le=1)] = 0.0  # 0: no augmentation at all; EDM takes 0.12 to 0.15
    strength: Positive = 1.0


class DiffusionConfig(Section):
    """Step 1: the class-conditional denoiser (eq. 1-5)."""

    image_size: Annotated[int, Field(ge=8)] = 128
    backbone: Literal["uvit", "unet"] = "unet"
    uvit: UViTConfig = UViTConfig()
    unet: UNetConfig = UNetConfig()
    timesteps: Count = 1000
    schedule: Literal["linear", "cosine"] = "linear"  # cosine: Nichol & Dhariwal 2021, eq. 17
    beta_start: Positive = 1e-4  # of the linear schedule
    beta_end: Positive = 0.02
    # noise-to-signal ratio times this at every t (log SNR - 2 log shift), Hoogeboom et al. 2023, "simple diffusion":
    # image size over the size that the schedule was made for, since larger images bear more noise
    shift: Positive = 1.0
    prediction: Literal["noise", "x0", "v"] = "noise"  # the network's output: Ho et al. 2020; Salimans & Ho 2022
    # eq. 3 weighted by the SNR: Hang et al. 2023 (min_snr), Choi et al. 2022 (p2); none: its mean as it is
    weighting: Literal["none", "min_snr", "p2"] = "none"
    gamma: Positive | None = None  # of the weighting; None: the papers' 5 (min_snr) and 1 (p2)
    # of t in training; logit_normal: t = T * sigmoid(t_mean + t_deviation * z), Esser et al. 2024; mean < 0: less noise
    t_distribution: Literal["uniform", "logit_normal"] = "uniform"
    t_mean: float = 0.0
    t_deviation: Positive = 1.0
    label_dropout: Fraction = 0.15
    contrastive: ContrastiveConfig = ContrastiveConfig()
    align: AlignConfig = AlignConfig()
    augment: bool = False  # random horizontal flip in step 1
    augmentation: AugmentationConfig = AugmentationConfig()
    # (share of the steps, size), ...: until that share is done, images of that size; then image_size (U-Net only)
    growth: tuple[tuple[Fraction, Annotated[int, Field(ge=8)]], ...] = ()
    init: str | None = None  # a model.safetensors of another step 1 to begin with, where names and shapes fit
    optimizer: OptimizerConfig = OptimizerConfig(steps=1000)
    sample_every: Positive = 50.0  # epochs between sample grids in the log
    # minutes between linear probes of the EMA weights on the validation split, in the log; 0: none. They take at most
    # some 20 s each, which neither the log's seconds nor --max-minutes count.
    probe_minutes: NonNegative = 0.0
    probe_blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None  # None: first up, middle, last but one
    # ddim: Song et al. 2021; dpm and sde: DPM-Solver++(2M), Lu et al. 2022, without and with noise in its steps; ddpm:
    # eq. 2 over all timesteps
    sampler: Literal["ddim", "dpm", "sde", "ddpm"] = "sde"
    sample_steps: Count = 20  # of all but ddpm
    sample_dtype: Literal["auto", "fp32", "bf16"] = "auto"  # of the forward passes; auto: bf16 if native
    guidance_scale: NonNegative = 1.0  # 1: the conditional model as it is

    @model_validator(mode="after")
    def _only_what_acts(self) -> Self:
        """A setting that belongs to another choice than the one made is an error."""
        if self.schedule != "linear" and (self.beta_start, self.beta_end) != (1e-4, 0.02):
            raise ValueError("beta_start and beta_end belong to schedule linear")
        if self.gamma is not None and self.weighting == "none":
            raise ValueError("gamma needs weighting min_snr or p2")
        if self.t_distribution == "uniform" and (self.t_mean, self.t_deviation) != (0, 1):
            raise ValueError("t_mean and t_deviation belong to t_distribution logit_normal")
        if self.augmentation.probability and self.align.weight:
            raise ValueError("augmentation and align exclude one another: align sees the image as stored")
        if self.align.block not in ("matching", "middle", *self.network.blocks):
            raise ValueError(f"align.block {self.align.block}: this network has {', '.join(self.network.blocks)}")
        if self.growth and self.backbone != "unet":
            raise ValueError("growth needs backbone unet: U-ViT's positions have one size")
        stages = [*self.growth, (1.0, self.image_size)]
        pairs = zip(stages, stages[1:], strict=False)
        if any(a[0] >= b[0] or a[1] >= b[1] for a, b in pairs) or any(share == 0 for share, _ in stages):
            raise ValueError("growth must rise in share of the steps (above 0) and in size, to image_size")
        return self

    @property
    def network(self) -> UViTConfig | UNetConfig:
        """The shape of the backbone."""
        return self.uvit if self.backbone == "uvit" else self.unet

    def size_at(self, step: int, steps: int) -> int:
        """Size of the images of a step (0-based) of a training of so many `steps`, pixels."""
        return next((size for share, size in self.growth if step < share * steps), self.image_size)


class FeaturesConfig(Section):
    """Taps and the Gaussianity test (eq. 6, figure 2)."""

    reading: Literal["channel_mean", "token_mean", "all_values", "per_image"] = "channel_mean"
    timestep: Annotated[int, Field(ge=0)] = 100  # of the test
    batch_size: Count = 256  # images of the test
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    top_k: Count = 3  # blocks taken where none has p < alpha
    # eq. 6; table VI's worst; the best linear probes inside the training split
    select: Literal["least_gaussian", "most_gaussian", "probe"] = "least_gaussian"
    blocks: tuple[int, ...] | None = None  # a forced choice
    input: Literal["clean", "noised", "clean_t0"] = "clean"  # table VII
    # of step 2; None: a random t per image (the paper)
    timesteps: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    eval_timesteps: Annotated[tuple[int, ...], Field(min_length=1)] = (10, 50, 100, 200)
    # of the frozen model; auto: bf16 where the hardware has it. The first while step 2 is trained (features and eq. 7),
    # the second in validation and prediction (bf16: probabilities move in the third decimal place).
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    predict_dtype: Literal["auto", "fp32", "bf16"] = "fp32"
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

    # f_sub: the CNN, or a copy of step 1's own network, which is trained further (features/finetuned.py): where no
    # pretrained CNN fits the images. It sees what step 1 saw; readers and floors look at the CNN either way.
    sub_network: Literal["cnn", "step1"] = "cnn"
    cnn: str = "tf_efficientnet_lite0"  # any timm model
    cnn_weights: str = "auto"  # auto | offline | hub | none | a file
    cnn_size: Annotated[int, Field(ge=32)] = 128
    cnn_lr_scale: NonNegative = 1.0  # learning rate of f_sub relative to the head's
    head: Literal["paper", "late", "branches"] = "paper"
    grid: Count = 16  # height and width of the map that the blocks are brought to
    width: Count = 512  # channels of f_main and f_sub
    dropout: Fraction = 0.5
    # stride of the frozen CNN's map from which a linear probe reads beside the network (classifier/reader.py); 0: none
    second_reader: Annotated[int, Field(ge=0)] = 0
    # linear probes of log-covariances, which tell the texture: of all of the frozen CNN's maps, of all of step 1's
    covariance_readers: tuple[Literal["cnn", "step1"], ...] = ()
    lambda_cycle: NonNegative = 10.0  # lambda_1 of eq. 10
    lambda_consistency: NonNegative = 0.1  # lambda_2 of eq. 10
    cycle_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # random part of the batch eq. 7 is taken on
    optimizer: OptimizerConfig = OptimizerConfig(epochs=50)
    validate_every: Positive = 1.0  # epochs

    @model_serializer(mode="wrap")
    def _without_what_is_younger(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As a window that is not used."""
        found: dict[str, Any] = plain(self)
        unused = {"covariance_readers": not self.covariance_readers, "sub_network": self.sub_network == "cnn"}
        return {name: value for name, value in found.items() if not unused.get(name)}


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
    # of a training's forward passes; auto: on a CPU with bf16 a trial at the start decides (training/fastest.py)
    attention: Literal["auto", "sdpa", "explicit"] = "auto"
    # torch.compile of a model's repeated parts in training; auto: on a GPU, where a trial finds that it pays
    compile: Literal["auto", "always", "never"] = "auto"
    # a step's passes as one CUDA graph; auto: where one process trains on a GPU (training/graphs.py)
    graphs: Literal["auto", "never"] = "auto"
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

    @property
    def sub_size(self) -> int:
        """Pixels that f_sub sees."""
        return self.classifier.cnn_size if self.classifier.sub_network == "cnn" else self.diffusion.image_size

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        uvit, unet, size = self.diffusion.uvit, self.diffusion.unet, self.diffusion.image_size
        unit, name = {
            "uvit": (uvit.patch, "diffusion.uvit.patch"),
            "unet": (unet.patch * 2 ** (len(unet.widths) - 1), "by which the U-Net's levels shrink an image"),
        }[self.diffusion.backbone]
        if size % unit:
            raise ValueError(f"diffusion.image_size {size} is not a multiple of {unit}, {name}")
        if wrong := [side for _, side in self.diffusion.growth if side % unit]:
            raise ValueError(f"diffusion.growth: size {wrong[0]} is not a multiple of {unit}, {name}")
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
