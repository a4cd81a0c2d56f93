"""The CPT-style pyramid, and its pretext task on planted shapes."""

import math

import numpy as np
import pytest
import torch
from skimage.draw import ellipse as skimage_ellipse
from skimage.draw import polygon2mask

from dcube.baselines import cpt, pretext
from dcube.training.order import torch_rng

TINY = cpt.CPTSize((6, 8, 10, 16), (1, 1, 1, 1), (1, 2, 2, 4), mlp_ratios=(2, 2, 2, 2))


def planted(kind: str, **changes: object) -> pretext.Shapes:
    """One shape in the middle of an image."""
    given = {
        "kind": torch.tensor([[pretext.KINDS.index(kind)]]), "centre": torch.tensor([[[0.5, 0.45]]]).double(),
        "radius": torch.tensor([[[0.3, 0.15]]]).double(), "angle": torch.tensor([[0.4]]).double(),
        "corners": torch.tensor([[5]]), "waves": torch.zeros(1, 1, pretext.WAVES, 2).double(),
        "opacity": torch.tensor([[0.4]]).double(), "present": torch.tensor([[True]]),
    }  # fmt: skip
    return pretext.Shapes(**(given | changes))  # type: ignore[arg-type]


def mask_of(shapes: pretext.Shapes, size: int = 200) -> np.ndarray:
    return pretext.paint(torch.full((1, 1, size, size), 0.3), shapes)[1][0, 0].numpy().astype(bool)


def test_ellipse() -> None:
    """The oracle's pixel i lies at i + 0.5 of ours; its rotation turns the other way."""
    expected = np.zeros((200, 200), bool)
    rows, columns = skimage_ellipse(99.5, 89.5, 30, 60, shape=(200, 200), rotation=-0.4)
    expected[rows, columns] = True
    made = mask_of(planted("ellipse"))
    assert made.sum() == pytest.approx(math.pi * 60 * 30, rel=0.01)
    assert (made ^ expected).sum() < 0.01 * made.sum()


def test_polygon() -> None:
    angles = 0.4 + 2 * math.pi * np.arange(5) / 5
    corners = np.stack([99.5 + 60 * np.sin(angles), 89.5 + 60 * np.cos(angles)], axis=1)
    made, expected = mask_of(planted("polygon")), polygon2mask((200, 200), corners)
    assert made.sum() == pytest.approx(2.5 * 60**2 * math.sin(2 * math.pi / 5), rel=0.01)
    assert (made ^ expected).sum() < 0.02 * made.sum()


def test_blob() -> None:
    """The area of an outline r (1 + a cos 3u) is pi r^2 (1 + a^2 / 2); without waves it is a disc."""
    assert mask_of(planted("blob")).sum() == pytest.approx(math.pi * 60**2, rel=0.01)
    waves = torch.zeros(1, 1, pretext.WAVES, 2).double()
    waves[0, 0, 2, 0] = 0.3
    assert mask_of(planted("blob", waves=waves)).sum() == pytest.approx(math.pi * 60**2 * 1.045, rel=0.01)


@pytest.mark.parametrize("level", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("kind", pretext.KINDS)
def test_the_mask_is_where_the_image_changed(kind: str, level: float) -> None:
    images = torch.full((1, 1, 200, 200), level)
    changed, mask = pretext.paint(images, planted(kind))
    difference = (changed - images).abs()
    most = 0.4 * max(level, 1 - level)  # blended with what is farther away
    assert torch.equal(difference > most / 2, mask.bool()) and changed.min() >= 0 and changed.max() <= 1
    assert difference.max() == pytest.approx(most, rel=1e-3)
    absent, nothing = pretext.paint(images, planted(kind, present=torch.tensor([[False]])))
    assert torch.equal(absent, images) and nothing.sum() == 0


def test_random_shapes_belong_to_the_generator() -> None:
    images = torch.rand(64, 3, 48, 48)
    changed, mask = pretext.insert_shapes(images, torch_rng(0, "a"))
    again, _ = pretext.insert_shapes(images, torch_rng(0, "a"))
    other, _ = pretext.insert_shapes(images, torch_rng(1, "a"))
    assert torch.equal(changed, again) and not torch.equal(changed, other)
    assert mask.shape == (64, 1, 48, 48) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert (mask.sum((1, 2, 3)) > 0).all() and 0.02 < mask.mean() < 0.4
    shapes = pretext.draw_shapes(500, torch_rng(0, "b"))
    assert set(shapes.present.sum(1).tolist()) == {1, 2, 3, 4, 5} and set(shapes.kind.unique().tolist()) == {0, 1, 2}


def test_segmentation_loss() -> None:
    mask = (torch.rand(3, 1, 16, 16) < 0.3).float()
    right, dice = pretext.segmentation_loss(40 * (mask - 0.5), mask)
    assert right < 1e-3 and dice > 0.999
    half, dice = pretext.segmentation_loss(torch.zeros_like(mask), mask)
    counts = mask.sum((1, 2, 3))
    expected = ((counts + 1) / (counts + 128 + 1)).mean()
    assert float(dice) == pytest.approx(float(expected)) and float(half) == pytest.approx(math.log(2) + 1 - float(dice))


def test_pyramid() -> None:
    for size in (64, 100):
        maps = cpt.Pyramid(TINY)(torch.rand(2, 3, size, size))
        sides = [math.ceil(size / stride) for stride in (4, 8, 16, 32)]
        assert [tuple(m.shape) for m in maps] == [(2, w, s, s) for w, s in zip(TINY.widths, sides, strict=True)]


def test_each_kernel_of_the_embedding_sees_its_own_surroundings() -> None:
    """One cell's channels react to pixels within 1, 2 and 3 of its centre."""
    embedding = cpt.MultiKernelEmbedding(1, 7, 4)
    assert [c.out_channels for c in embedding.convolutions] == [3, 2, 2]
    image = torch.rand(1, 1, 32, 32)
    for radius, channels in zip((1, 2, 3), embedding.convolutions, strict=True):
        touched = torch.autograd.functional.jacobian(lambda x, c=channels: c(x)[0, 0, 4, 4], image)[0, 0]
        rows, columns = touched.nonzero().T
        assert (rows.min(), rows.max()) == (16 - radius, 16 + radius) == (columns.min(), columns.max())


def test_reduction_is_local() -> None:
    reduce = cpt.LocalReduction(3, 4)
    x = torch.rand(1, 3, 8, 8)
    changed = x.clone()
    changed[0, :, 3, 4] += 1
    differs = (reduce(x) - reduce(changed)).abs().sum(1)[0] > 1e-6
    assert differs.tolist() == [[False, True], [False, False]]
    assert reduce(torch.rand(1, 3, 9, 9)).shape == (1, 3, 3, 3)


def test_attention_is_that_of_the_equation() -> None:
    """Without reduction: softmax(q k^T / sqrt(d)) v over all positions, head by head."""
    block = cpt.CPTBlock(8, 2, 1, 2)
    x = torch.rand(1, 8, 3, 3)
    query = block.query(x)[0].flatten(1)
    key, value = block.key_value(x)[0].flatten(1).chunk(2)
    heads = [
        value[part] @ (query[part].T @ key[part] / 2).softmax(-1).T for part in (slice(0, 4), slice(4, 8))
    ]
    expected = block.project(torch.cat(heads).view(1, 8, 3, 3))
    torch.testing.assert_close(block._attend(x), expected, rtol=1e-4, atol=1e-6)


def test_pretext_is_learnt_without_labels() -> None:
    """On one batch of planted shapes the loss falls, whatever the labels say."""
    torch.manual_seed(0)
    system = cpt.CPTStyle(TINY, 2)
    images = torch.full((8, 1, 32, 32), 0.2) + 0.02 * torch.rand(8, 1, 32, 32)
    optimizer = torch.optim.AdamW(system.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss, parts = system.stages()[0].loss(images, torch.zeros(8).long(), torch_rng(0, "one batch"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0] and parts["dice"] > 0.6
    assert system.head.weight.grad is None
