"""Step 2 of the paper (eq. 7-10), selection (eq. 6) and prediction, each image and each forward on its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats

from benchmarks.reference.denoiser import PlainDenoiser
from benchmarks.reference.generative import alpha_bars, noised
from benchmarks.reference.training import PlainTraining
from dcube.classifier.model import DCubeClassifier


@torch.no_grad()
def block_maps(
    denoiser: PlainDenoiser, images: torch.Tensor, t: torch.Tensor, blocks: Sequence[int], grid: int
) -> list[torch.Tensor]:
    """Maps [B, C_b, h, w] of the selected blocks, label-free, from a forward to the very end.

    images: [B, C, S, S] in [0, 1]; t: [B]. Maps larger than the head's grid are averaged down to it.
    """
    null = torch.full_like(t, denoiser.null_label)
    _, features = denoiser(images * 2 - 1, t, null)
    maps = [denoiser.maps(features[block]) for block in blocks]
    return [F.adaptive_avg_pool2d(m, grid) if m.shape[-1] > grid else m for m in maps]


class ClassifierReference(PlainTraining):
    """Steps of step 2 on one batch.

    batch: y, t, cycle_t [B]; large [B, C, S, S] for the CNN, small for the denoiser, both in [0, 1]; cycle_noise like
    small. `cycle`: with eq. 7, whose four forwards are made without a gradient, as the research code makes them.
    """

    def __init__(
        self, denoiser: PlainDenoiser, model: DCubeClassifier, batch: Mapping[str, torch.Tensor], blocks: Sequence[int],
        grid: int, lambdas: tuple[float, float], cycle: bool, lr: float, decay: float,
    ) -> None:  # fmt: skip
        super().__init__(list(model.parameters()), lr, decay)
        self.denoiser, self.model, self.batch, self.blocks, self.grid = denoiser, model.train(), batch, blocks, grid
        self.lambda_cycle, self.lambda_consistency = lambdas
        self.with_cycle = cycle
        self.bars = alpha_bars(denoiser.config.timesteps, batch["y"].device)
        self.cycle = torch.zeros(len(batch["y"]))  # eq. 7 per image, of the last step
        self.base = torch.zeros(())  # its loss without eq. 7

    def loss(self) -> torch.Tensor:
        """Eq. 10 on the batch."""
        batch = self.batch
        logits = self.logits(batch["large"], batch["small"])
        mirrored = self.logits(batch["large"].flip(-1), batch["small"].flip(-1))
        loss = F.cross_entropy(logits, batch["y"])                                               # eq. 9
        loss = loss + self.lambda_consistency * (logits - mirrored).square().sum(1).mean()       # eq. 8
        self.base = loss.detach()
        if self.with_cycle:
            self.cycle = self.cycle_terms(batch["small"], logits)
            mirror = self.cycle_terms(batch["small"].flip(-1), mirrored)
            loss = loss + self.lambda_cycle * (self.cycle.mean() + mirror.mean()) / 2
        return loss

    def logits(self, large: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
        """[B, K] of images and their features, which are computed anew."""
        maps = block_maps(self.denoiser, small, self.batch["t"], self.blocks, self.grid)
        out: torch.Tensor = self.model.head(self.model.subnet(large), maps)
        return out

    @torch.no_grad()
    def cycle_terms(self, small: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Eq. 7 for each image [B]: noise under the predicted and under the true label, two forwards."""
        batch = self.batch
        x_t = noised(small * 2 - 1, batch["cycle_noise"], batch["cycle_t"], self.bars)
        true, _ = self.denoiser(x_t, batch["cycle_t"], batch["y"])
        predicted, _ = self.denoiser(x_t, batch["cycle_t"], logits.softmax(1))
        return (predicted - true).square().flatten(1).mean(1)


@torch.no_grad()
def gaussianity(denoiser: PlainDenoiser, images: torch.Tensor, timestep: int) -> list[tuple[float, float]]:
    """(D, p) of eq. 6 for every block: features averaged over images and positions, standardised, against N(0, 1).

    images: [B, C, S, S] in [0, 1].
    """
    t = torch.full((len(images),), timestep, device=images.device)
    _, features = denoiser(images * 2 - 1, t, torch.full_like(t, denoiser.null_label))
    tests = []
    for feature in features:
        values = denoiser.maps(feature).double().mean((0, 2, 3)).cpu().numpy()
        result = stats.kstest((values - values.mean()) / values.std(ddof=1), "norm")
        tests.append((float(result.statistic), float(result.pvalue)))
    return tests


@torch.no_grad()
def predict(
    denoiser: PlainDenoiser, model: DCubeClassifier, paths: Sequence[Path], blocks: Sequence[int], grid: int,
    sizes: tuple[int, int, int], timesteps: Sequence[int],
) -> np.ndarray:  # fmt: skip
    """Probabilities [n, K], one grey image after the other: decode, then the whole classifier once per timestep.

    sizes: stored, of the denoiser, of the CNN. The probabilities are averaged over the timesteps.
    """
    device = denoiser.p["labels.weight"].device
    rows = []
    for path in paths:
        stored, small, large = sizes
        picture = Image.open(path).convert("L").resize((stored, stored), Image.Resampling.BILINEAR)
        image = torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).to(device)[None, None]
        inputs = (F.interpolate(image, (s, s), mode="area") for s in (small, large))
        for_denoiser, for_cnn = inputs
        answers = []
        for timestep in timesteps:
            maps = block_maps(denoiser, for_denoiser, torch.tensor([timestep], device=device), blocks, grid)
            answers.append(model.head(model.subnet(for_cnn), maps).softmax(1))
        rows.append(torch.stack(answers).mean(0)[0].cpu().numpy())
    return np.stack(rows)
