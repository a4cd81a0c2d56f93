"""What is measured at which size: the paper's network (U-ViT) at a batch for a CPU, the recipe `small` (U-Net), the
paper's network at the paper's batch for a GPU, and a tiny one for the tests.
"""

from dataclasses import dataclass

from dcube.config import ContrastiveConfig, DiffusionConfig, Experiment
from dcube.networks import UNetConfig, UViTConfig
from dcube.settings import load_experiment

EPOCHS = 50  # over which the extraction of cached features is spread


@dataclass(frozen=True)
class Size:
    """A recipe, what is changed in it, and how many images each case takes."""

    name: str
    recipe: str
    overrides: tuple[str, ...]
    blocks: tuple[int, ...]  # the three selected ones
    networks: tuple[tuple[str, int], ...]  # of step 2: CNN and its input, pixels
    network: tuple[str, int]  # of prediction
    stored: int = 256  # size of the stored images, pixels
    images: int = 16  # in the store
    files: int = 60  # of the loading case
    file_size: int = 1024  # pixels
    tested: int = 32  # images of the Gaussianity test; the paper takes 256
    sampled: int = 16
    sampled_steps: int = 20  # of the reference's sampler that are timed
    predicted: int = 256
    predicted_plainly: int = 16  # of them by the reference, which takes one after the other

    def experiment(self, *changes: str, network: tuple[str, int] | None = None) -> Experiment:
        """The recipe with the paper's step 1, the size's overrides, a CNN with random weights, and `changes`."""
        cnn, pixels = network or self.network
        own = (f"classifier.cnn={cnn}", f"classifier.cnn_size={pixels}", f"data.size={self.stored}")
        found = load_experiment(self.recipe, [*COMMON, *self.overrides, *own, *changes])
        return found.model_copy(update={"diffusion": as_in_the_paper(found.diffusion)})


def as_in_the_paper(config: DiffusionConfig) -> DiffusionConfig:
    """Eq. 1-5 on the recipe's network: eq. 4 as printed, and none of the knobs that a recipe may turn."""
    kept = ("image_size", "backbone", "timesteps", "optimizer", "sampler", "sample_steps", "sample_dtype")
    chosen = {name: getattr(config, name) for name in kept}
    unet = UNetConfig(patch=config.unet.patch, widths=config.unet.widths, groups=config.unet.groups)
    shape = {name: getattr(config.uvit, name) for name in ("patch", "width", "depth", "heads", "mlp_ratio")}
    contrastive = ContrastiveConfig(distance="paper", label="true")
    return DiffusionConfig(**chosen, unet=unet, uvit=UViTConfig(**shape), contrastive=contrastive)


# the paper's head, input and test; dropout is off, so that both sides compute the same loss
COMMON = (
    *("classifier.head=paper", "classifier.second_reader=0", "features.input=clean", "features.reading=channel_mean"),
    *("features.select=least_gaussian", "data.balance=sampler", "data.horizontal_flip=true"),
    *("features.timesteps=[10,50,100,200]", "features.eval_timesteps=[10,50,100,200]", "data.channels=1"),
    *("classifier.cnn_weights=none", "classifier.dropout=0", "classifier.optimizer.batch_size=8"),
)
NETWORKS = tuple((cnn, pixels) for cnn in ("tf_efficientnet_lite0", "resnet50") for pixels in (128, 256))
TINY = (
    *("diffusion.image_size=16", "diffusion.unet.patch=2", "diffusion.unet.widths=[8,16]", "diffusion.unet.groups=4"),
    *("diffusion.optimizer.batch_size=4", "diffusion.sample_steps=2", "classifier.width=8", "classifier.grid=4"),
    *("classifier.optimizer.batch_size=4", "diffusion.timesteps=20", "features.timestep=10"),
    *("diffusion.optimizer.dtype=bf16", "runtime.attention=sdpa"),
    *("features.timesteps=[2,5,9,12]", "features.eval_timesteps=[2,5,9,12]"),
)
SIZES = {
    "paper": Size("paper", "covid-xray", ("diffusion.optimizer.batch_size=8",), (6, 8, 9), NETWORKS, ("resnet50", 256)),
    "card": Size(
        "card", "covid-xray", ("classifier.optimizer.batch_size=32",), (6, 8, 9), NETWORKS[2:], ("resnet50", 256),
        images=256, tested=256,
    ),
    "small": Size("small", "small", (), (4, 5, 6), NETWORKS, ("tf_efficientnet_lite0", 128), images=64, tested=64),
    "tiny": Size(
        "tiny", "small", TINY, (2, 3), (("test_efficientnet", 32),), ("test_efficientnet", 32),
        stored=32, images=12, files=10, file_size=64, tested=8, sampled=2, sampled_steps=3,
        predicted=6, predicted_plainly=2,
    ),
}  # fmt: skip
