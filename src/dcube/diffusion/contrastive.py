"""Terms of step 1 that shape the middle block by the labels: eq. 4, its repaired forms, and two relatives of it."""

import torch
import torch.nn.functional as F

from dcube.config import ContrastiveConfig
from dcube.training.runtime import full_precision, precision
from dcube.training.team import team_size


def pair_distance(f1: torch.Tensor, f2: torch.Tensor, distance: str) -> torch.Tensor:
    """d of eq. 4 for each pair, [B]; the gradient is 0, not NaN, where d = 0.

    f1, f2: [B, ...] features. `paper`: L2 over all values. The others take maps [B, C, h, w], average them over the
    positions and bring them to unit length, so that a margin means something at any width: `pooled` as they are,
    `centred` after the mean of the batch is subtracted (it is nearly all of them: unit vectors of one network at one
    layer lie close together, and d is then far below any margin).
    """
    f1, f2 = full_precision(f1), full_precision(f2)
    if distance != "paper":
        f1, f2 = (f.flatten(2).mean(2) for f in (f1, f2))
        if distance == "centred":
            centre = torch.cat([f1, f2]).mean(0)
            f1, f2 = f1 - centre, f2 - centre
        f1, f2 = F.normalize(f1, dim=1), F.normalize(f2, dim=1)
    return torch.linalg.vector_norm((f1 - f2).flatten(1), dim=1)


def contrastive_loss(
    distances: torch.Tensor, same: torch.Tensor, margin: float, reduction: str = "mean"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 4: d for pairs of one class, max(margin - d, 0) for the others.

    distances: [B]; same: [B] bool. Returns (scalar, share of the other-class pairs whose hinge is active).
    `reduction`: "mean" over the batch, or "sum" as the paper writes it.
    """
    hinge = (margin - distances).clamp(min=0)
    terms = torch.where(same, distances, hinge)
    other = ~same
    active = ((hinge > 0) & other).sum() / other.sum().clamp(min=1)
    return terms.sum() if reduction == "sum" else terms.mean(), active


def all_pairs(feature: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every pair i < j of a batch: (f1 [P, ...], f2 [P, ...], same [P], weight [P]).

    The weights balance eq. 4: pairs of one class and pairs of two classes count alike in sum.
    """
    i, j = torch.triu_indices(len(y), len(y), offset=1, device=y.device)
    same = y[i] == y[j]
    share, least = same.float().mean(), 1 / len(i)
    weight = torch.where(same, 0.5 / share.clamp(min=least), 0.5 / (1 - share).clamp(min=least))
    return feature[i], feature[j], same, weight


def supervised_contrastive(z: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. 2020 (eq. 2), each class of the batch counting alike.

    z: [B, D] of any length (brought to unit length here); y: [B]. An image alone in its class has no term.
    """
    z = F.normalize(full_precision(z), dim=1)
    itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    with precision(z.device, torch.float32):  # autocast would round the cosines, which lie close to 1
        logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    log_share = logits - logits.logsumexp(1, keepdim=True)
    positive = (y[:, None] == y[None]) & ~itself
    count = positive.sum(1)
    terms = -log_share.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    weight = class_weights(y) * (count > 0)
    return (weight * terms).sum() / weight.sum().clamp(min=1e-8)


def auxiliary_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a classification head on the middle block, each class of the batch counting alike.

    logits: [B, K]; y: [B] int64.
    """
    weight = class_weights(y)
    return (weight * F.cross_entropy(full_precision(logits), y, reduction="none")).sum() / weight.sum()


def class_weights(y: torch.Tensor) -> torch.Tensor:
    """[B] float32: one over the number of images of the own class in the batch."""
    return 1 / (y[:, None] == y[None]).float().sum(1)


def alignment_loss(projected: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cosine of projected block features and a frozen network's features of the clean image, mean over positions
    (REPA, Yu et al. 2025, eq. 4). projected: [B, D, h, w]; teacher: [B, D, s, s], brought to h x w.
    """
    if teacher.shape[-2:] != projected.shape[-2:]:
        teacher = F.interpolate(teacher, projected.shape[-2:], mode="bilinear", antialias=True)
    return 1 - F.cosine_similarity(full_precision(projected), full_precision(teacher), dim=1).mean()


def label_term(
    config: ContrastiveConfig, middle: torch.Tensor, side: dict[str, torch.Tensor], y: torch.Tensor, same: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The term that `contrastive.form` names, unweighted, and figures for the log.

    middle: [2 B, ...], first images then their partners (`paper`: as tapped, else maps); side: what the side heads
    gave; y: [2 B] in the same order; same: [B].
    """
    if config.form == "supervised":
        loss = supervised_contrastive(side["projection"], y, config.temperature)
        return loss, {"contrastive": loss.detach()}
    if config.form == "auxiliary":
        loss = auxiliary_loss(side["auxiliary"], y)
        accuracy = (side["auxiliary"].argmax(1) == y).float().mean()
        return loss, {"contrastive": loss.detach(), "auxiliary_accuracy": accuracy.detach()}
    if config.pairs == "all":
        pooled = full_precision(middle).flatten(2).mean(2) if config.distance != "paper" else middle
        if config.distance == "centred":
            pooled = pooled - pooled.mean(0)
        f1, f2, same, weight = all_pairs(pooled, y)
        if config.distance != "paper":
            f1, f2 = F.normalize(f1, dim=1), F.normalize(f2, dim=1)
        distances = pair_distance(f1, f2, "paper")
        hinge = (config.margin - distances).clamp(min=0)
        loss = (weight * torch.where(same, distances, hinge)).mean()
        _, active = contrastive_loss(distances, same, config.margin)
    else:
        first, second = middle.chunk(2)
        distances = pair_distance(first, second, config.distance)
        reduction = "sum" if config.distance == "paper" else "mean"
        loss, active = contrastive_loss(distances, same, config.margin, reduction)
        if reduction == "sum":
            loss = loss * team_size()  # the gradient of several processes is the mean of those of their parts
    return loss, {"contrastive": loss.detach(), "active_share": active, "distance": distances.detach().mean()}
