"""The embedded set: right physics, the same every time, and of the difficulty that was set."""

import numpy as np
import pytest

from dcube.config import DataConfig
from dcube.data.phantom import back_project, open_phantom, parse_phantom, phantom_slice, sinogram
from dcube.data.sources import open_images
from dcube.data.split import assign_folds, assign_splits
from dcube.data.store import cached_store
from dcube.errors import InputError


def test_name_and_settings() -> None:
    config = parse_phantom("phantom:patients=30, slices=3,size=96,seed=1", 5)
    assert (config.patients, config.slices, config.size, config.seed) == (30, 3, 96, 1)
    assert parse_phantom("phantom:", 5).seed == 5
    for name, reason in {
        "phantom:patient=3": "no setting 'patient'; did you mean patients",
        "phantom:foo": "did you mean patients or slices or size or seed",
        "phantom:patients=2": "patients must be a whole number from 9",
        "phantom:size=big": "size must be a whole number",
    }.items():
        with pytest.raises(InputError, match=reason):
            open_images(name)


def test_integrals_of_a_disc_are_its_chords() -> None:
    size, radius = 64, 0.5
    offsets = (np.arange(size) + 0.5) * 2 / size - 1
    chords = 2 * np.sqrt(np.maximum(radius**2 - offsets**2, 0))
    np.testing.assert_allclose(sinogram([(0, 0, radius, radius, 0.3, 1)], size), np.tile(chords, (48, 1)), atol=1e-12)


def test_projection_and_back_projection_agree_with_the_image() -> None:
    size = 128
    ellipses = [(0.1, 0.2, 0.6, 0.3, 0.5, 1.0), (0.3, 0.2, 0.1, 0.1, 0.0, -0.5)]
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = np.meshgrid(axis, -axis)
    truth = np.zeros((size, size))
    for cx, cy, a, b, tilt, density in ellipses:
        along = (x - cx) * np.cos(tilt) + (y - cy) * np.sin(tilt)
        across = (y - cy) * np.cos(tilt) - (x - cx) * np.sin(tilt)
        truth += density * ((along / a) ** 2 + (across / b) ** 2 < 1)
    image = back_project(sinogram(ellipses, size), size)
    assert np.abs(image - truth).mean() < 0.02
    assert image[np.hypot(x - 0.3, y - 0.2) < 0.05].mean() == pytest.approx(0.5, abs=0.02)


def test_back_projection_agrees_with_scikit_image() -> None:
    from skimage.transform import iradon

    size = 64
    integrals = sinogram([(0.1, 0.2, 0.6, 0.3, 0.5, 1.0)], size)
    angles = np.arange(48) * 180 / 48
    reference = iradon(integrals.T * size / 2, theta=angles, filter_name="hann")
    ours, inner = back_project(integrals, size), slice(2, -2)
    # iradon turns about pixel size // 2, half a pixel beside our centre
    shifted = np.mean([reference[i:, j:][: size - 1, : size - 1] for i in (0, 1) for j in (0, 1)], axis=0)
    assert np.corrcoef(ours[:-1, :-1][inner, inner].ravel(), shifted[inner, inner].ravel())[0, 1] > 0.99
    assert ours.sum() == pytest.approx(reference.sum(), rel=0.01)


def test_deterministic_and_different() -> None:
    images = open_phantom("phantom:patients=9,slices=2,size=32", 0)
    one, again = images.read(images.records[4]), images.read(images.records[4])
    np.testing.assert_array_equal(one, again)
    assert one.shape == (32, 32) and one.dtype == np.uint8
    assert (one != images.read(images.records[5])).any()
    other = open_phantom("phantom:patients=9,slices=2,size=32", 1)
    assert (one != other.read(other.records[4])).any() and other.name != images.name


def test_it_is_a_data_set(tmp_path) -> None:  # type: ignore[no-untyped-def]
    images = open_images("phantom:patients=9,slices=2,size=32")
    assert images.classes == ["benign", "malignant", "normal"] and len(images.records) == 18
    store = cached_store(images, DataConfig(size=32), tmp_path)
    np.testing.assert_array_equal(store.pixels[7, 0], images.read(images.records[7]))
    labels = [store.classes[label] for label in store.labels]
    splits = assign_splits(labels, store.groups, store.given_splits, val_fraction=0.2, test_fraction=0.2, seed=0)
    assert set(splits) == {"train", "val", "test"}


def test_the_frozen_set() -> None:
    """Size, imbalance and difficulty of the default set: statistics alone are right in 50 to 80 %."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from dcube.evaluation.floors import simple_statistics

    images = open_images("phantom:")
    labels = np.array([record.label for record in images.records])
    groups = [record.group for record in images.records]
    assert {name: int((labels == name).sum()) for name in images.classes} == FROZEN_COUNTS
    pixels = np.stack([images.read(record) for record in images.records])
    features = simple_statistics(pixels[:, None].astype(np.float32) / 255)
    folds, right = assign_folds(labels.tolist(), groups, 5, 0), np.zeros(len(labels), bool)
    for fold in range(5):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
        model.fit(features[folds != fold], labels[folds != fold])
        right[folds == fold] = model.predict(features[folds == fold]) == labels[folds == fold]
    assert 0.5 < right.mean() < 0.8
    sample = [pixels[labels == name][::20].astype(float).mean() for name in images.classes]
    np.testing.assert_allclose(sample, FROZEN_MEANS, atol=0.05)  # whoever changes this raises VERSION


FROZEN_COUNTS = {"benign": 120, "malignant": 180, "normal": 300}
FROZEN_MEANS = [46.211, 51.989, 47.024]


def test_the_label_shows_only_where_it_should() -> None:
    config = parse_phantom("phantom:size=64", 0)
    normal, benign, malignant = (
        phantom_slice(config, label, 3, 1).astype(int) for label in ("normal", "benign", "malignant")
    )
    assert (np.abs(normal - benign) > 20).sum() > 10 and (np.abs(benign - malignant) > 20).sum() > 10
    assert (np.abs(normal - benign) > 20).mean() < 0.1
