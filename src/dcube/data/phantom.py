"""`phantom:`, an embedded synthetic set: chest-CT-like slices made from physics, for demos and tests.

A patient is a set of ellipses (body, lungs, heart, spine, ribs, vessels, perhaps a lesion). Their line integrals
are exact; Poisson noise is added to the photon counts, and filtered back projection gives the slice (Kak and
Slaney, Principles of Computerized Tomographic Imaging, chapter 3). Benign lesions are smooth, malignant ones
spiculated, normal slices have none. Nothing here is clinical, and results on it say nothing about patients.

The difficulty (dose, contrast, size of lesions, variation of the anatomy) was set once, so that logistic
regression on simple statistics is right in 50 to 80 % of cases, before any model saw the set. It stays as it is;
whoever changes a pixel raises `VERSION`.
"""

import difflib
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from scipy import sparse

from dcube.data.records import ImageSet, Record
from dcube.errors import InputError

VERSION = 1
SHARES = {"benign": 0.2, "malignant": 0.3, "normal": 0.5}  # of the patients
LIMITS = {"patients": (9, 100_000), "slices": (1, 64), "size": (32, 256), "seed": (0, 2**31)}
WATER = 3.0  # attenuation per unit length; the image spans 2 units
PHOTONS = (1.2e4, 4e4)  # per ray before the body; each patient has a dose of its own
WINDOW = (0.0, 1.6)  # attenuation relative to water that becomes black and white


@dataclass(frozen=True)
class PhantomConfig:
    """How many patients and slices of each, pixels per side, and the seed that everything follows from."""

    patients: int = 150
    slices: int = 4
    size: int = 128
    seed: int = 0


def parse_phantom(data: str, seed: int) -> PhantomConfig:
    """`phantom:` or `phantom:patients=30,slices=3,size=96,seed=1`; `seed` counts where the name states none.

    Raises InputError for an unknown key (with its nearest names) or a value out of its range.
    """
    values = {"seed": seed}
    for part in filter(None, data.removeprefix("phantom:").split(",")):
        key, _, text = (piece.strip() for piece in part.partition("="))
        if key not in LIMITS:
            near = difflib.get_close_matches(key, LIMITS, n=2) or list(LIMITS)
            raise InputError(f"'{data}' has no setting '{key}'; did you mean {' or '.join(near)}?")
        low, high = LIMITS[key]
        if not text.isdecimal() or not low <= int(text) <= high:
            raise InputError(f"'{data}': {key} must be a whole number from {low} to {high}.")
        values[key] = int(text)
    return PhantomConfig(**values)


def open_phantom(data: str, seed: int) -> ImageSet:
    """The image set behind a `phantom:` name; slices are made when they are read, each alike every time."""
    config = parse_phantom(data, seed)
    labels = _patient_labels(config)
    records = [
        Record(f"patient-{p:04d}-slice-{s}", labels[p], f"patient-{p:04d}")
        for p in range(config.patients)
        for s in range(config.slices)
    ]
    place = {record.path: divmod(number, config.slices) for number, record in enumerate(records)}

    def read(record: Record) -> np.ndarray:
        return phantom_slice(config, record.label, *place[record.path])

    settings = ",".join(f"{key}={value}" for key, value in asdict(config).items())
    return ImageSet(f"phantom:{settings} (version {VERSION})", None, tuple(records), read)


def _patient_labels(config: PhantomConfig) -> list[str]:
    """Labels in random order, in the stated shares, at least three patients of each."""
    counts = {name: max(3, round(share * config.patients)) for name, share in SHARES.items()}
    counts["normal"] = config.patients - counts["benign"] - counts["malignant"]
    labels = [name for name, count in counts.items() for _ in range(count)]
    order = np.random.default_rng([config.seed, VERSION]).permutation(config.patients)
    return [labels[i] for i in order]


def phantom_slice(config: PhantomConfig, label: str, patient: int, index: int) -> np.ndarray:
    """One slice, [size, size] uint8."""
    person = np.random.default_rng([config.seed, VERSION, patient])  # the same for all slices of a patient
    photons = np.exp(person.uniform(*np.log(PHOTONS)))
    level = (index + 0.5) / config.slices * 2 - 1  # -1 .. 1 along the body
    rng = np.random.default_rng([config.seed, VERSION, patient, index])
    integrals = sinogram(_anatomy(person, rng, label, level), config.size)
    counts = rng.poisson(photons * np.exp(-WATER * integrals))
    noisy = np.log(photons / np.maximum(counts, 1)) / WATER
    image = back_project(noisy.astype(np.float32), config.size)
    low, high = WINDOW
    return np.clip((image - low) / (high - low) * 255 + 0.5, 0, 255).astype(np.uint8)


Ellipse = tuple[float, float, float, float, float, float]  # x, y, half axes a and b, angle, added density


def _anatomy(person: np.random.Generator, rng: np.random.Generator, label: str, level: float) -> list[Ellipse]:
    """Ellipses of one slice; `person` draws what is a patient's own, `rng` what changes from slice to slice."""
    u = person.uniform
    width, depth = u(0.78, 0.92), u(0.54, 0.70)
    fat, air = u(0.03, 0.09), u(0.18, 0.32)  # air: density of the lungs, water is 1
    shape: list[Ellipse] = [
        (0, 0, width, depth, 0, 0.9),
        (0, 0, width - fat, depth - fat, 0, 0.12),
        (0, -0.72 * depth, 0.11, 0.10, 0, u(0.25, 0.55)),  # spine
        (0, -0.72 * depth, 0.045, 0.045, 0, -0.3),
    ]
    lung_a = (width - fat) * u(0.34, 0.40)
    lung_b = (depth - fat) * u(0.66, 0.78) * (1 - 0.12 * level**2)
    lungs = [(side * (width - fat) * u(0.48, 0.53), u(-0.03, 0.05), -side * u(0.0, 0.2)) for side in (-1, 1)]
    shape += [(x, y, lung_a, lung_b, tilt, air - 1.02) for x, y, tilt in lungs]
    shape.append((u(0.0, 0.12), u(0.05, 0.18), u(0.14, 0.22), u(0.16, 0.26), u(-0.5, 0.5), u(0.1, 0.3)))  # heart
    for rib in np.linspace(0.25, 2 * np.pi + 0.25, 14, endpoint=False) + u(-0.1, 0.1):
        x, y = (width - 0.6 * fat - 0.04) * np.cos(rib), (depth - 0.6 * fat - 0.04) * np.sin(rib)
        shape.append((x, y, 0.055, 0.022, rib + np.pi / 2, u(0.3, 0.6)))
    side, radius, angle, reach = person.integers(2), u(0.095, 0.15), u(0, 2 * np.pi), np.sqrt(u(0, 0.36))
    density, drift = u(0.40, 0.75), u(-0.04, 0.04, size=2)
    vessels = int(person.integers(6, 18))
    for _ in range(vessels):
        shape.append(_vessel(rng, lungs[rng.integers(2)], lung_a, lung_b))
    if label != "normal":
        x, y, _ = lungs[side]
        x += reach * lung_a * np.cos(angle) + drift[0] * level
        y += reach * lung_b * np.sin(angle) + drift[1] * level
        radius *= np.sqrt(1 - 0.45 * level**2)
        shape += (_benign if label == "benign" else _malignant)(person, float(x), float(y), float(radius), density)
    return shape


def _vessel(rng: np.random.Generator, lung: tuple[float, float, float], lung_a: float, lung_b: float) -> Ellipse:
    angle, reach = rng.uniform(0, 2 * np.pi), 0.85 * np.sqrt(rng.uniform(0, 1))
    x, y = lung[0] + reach * lung_a * np.cos(angle), lung[1] + reach * lung_b * np.sin(angle)
    thick = rng.uniform(0.010, 0.030)
    toward = np.arctan2(y, x - 0.0) + rng.normal(0, 0.35)  # vessels run outwards from the middle
    return (x, y, thick * rng.uniform(1, 5), thick, toward, rng.uniform(0.25, 0.65))


def _benign(rng: np.random.Generator, x: float, y: float, radius: float, density: float) -> list[Ellipse]:
    flat = rng.uniform(0.8, 1.0)
    return [(x, y, radius, radius * flat, rng.uniform(0, np.pi), density)]


def _malignant(rng: np.random.Generator, x: float, y: float, radius: float, density: float) -> list[Ellipse]:
    """An irregular core with thin rays; the core is smaller, so that the added mass tells little."""
    core = 0.72 * radius
    parts: list[Ellipse] = [(x, y, core, core * rng.uniform(0.75, 1.0), rng.uniform(0, np.pi), 0.75 * density)]
    for _ in range(3):
        angle, far = rng.uniform(0, 2 * np.pi), 0.45 * core
        bump = core * rng.uniform(0.45, 0.65)
        parts.append((x + far * np.cos(angle), y + far * np.sin(angle), bump, bump, 0, 0.25 * density))
    rays = int(rng.integers(9, 14))
    for angle in np.linspace(0, 2 * np.pi, rays, endpoint=False) + rng.uniform(-0.2, 0.2, rays):
        half = core * rng.uniform(0.45, 0.8)
        far = core * 0.8 + half
        centre = (x + far * np.cos(angle), y + far * np.sin(angle))
        parts.append((*centre, half, rng.uniform(0.014, 0.022), float(angle), 0.8 * density))
    return parts


def _angles(size: int) -> np.ndarray:
    return np.arange(3 * size // 4) * (np.pi / (3 * size // 4))


def sinogram(ellipses: list[Ellipse], size: int) -> np.ndarray:
    """Exact line integrals of ellipses, [angles, size] (Kak and Slaney, eq. 3.5 f.); the image spans -1 .. 1."""
    x, y, a, b, tilt, density = np.array(ellipses, dtype=np.float64).T[:, :, None, None]
    angle = _angles(size)[None, :, None]
    offset = (np.arange(size) + 0.5)[None, None, :] * 2 / size - 1 - (x * np.cos(angle) + y * np.sin(angle))
    extent = (a * np.cos(angle - tilt)) ** 2 + (b * np.sin(angle - tilt)) ** 2
    chord = np.sqrt(np.maximum(extent - offset**2, 0))
    total: np.ndarray = (2 * density * a * b / extent * chord).sum(0)
    return total


def back_project(integrals: np.ndarray, size: int) -> np.ndarray:
    """Filtered back projection of parallel rays, [angles, size] -> [size, size], zero outside the circle."""
    length = 1 << (2 * size - 1).bit_length()
    step = 2 / size
    kernel = np.zeros(length)  # the ramp, taken in space so that the mean comes out right
    odd = np.arange(1, length // 2, 2)
    kernel[0] = 1 / 4
    kernel[odd] = kernel[-odd] = -1 / (np.pi * odd) ** 2
    smooth = 0.5 + 0.5 * np.cos(2 * np.pi * np.fft.rfftfreq(length))  # Hann, against noise
    response = np.fft.rfft(kernel).real * smooth
    filtered = np.fft.irfft(np.fft.rfft(integrals, length, axis=1) * response, length, axis=1)[:, :size]
    scale = np.pi / len(integrals) / step
    image: np.ndarray = _projector(size) @ (filtered.astype(np.float32).ravel() * np.float32(scale))
    return image.reshape(size, size)


@lru_cache(maxsize=2)
def _projector(size: int) -> sparse.csr_matrix:
    """Linear interpolation of every ray's value at every pixel, as one sparse matrix: the geometry never changes."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    inside = np.flatnonzero((axis[None] ** 2 + axis[:, None] ** 2).ravel() < (1 - 2 / size) ** 2)
    x, y = axis[inside % size], -axis[inside // size]  # rows run downwards
    rows, columns, values = [], [], []
    for number, angle in enumerate(_angles(size)):
        place = (x * np.cos(angle) + y * np.sin(angle) + 1) * size / 2 - 0.5
        left = np.clip(np.floor(place).astype(np.int64), 0, size - 2)
        part = (place - left).astype(np.float32)
        for column, value in ((left, 1 - part), (left + 1, part)):
            rows.append(inside)
            columns.append(number * size + column)
            values.append(value)
    shape = (size * size, size * len(_angles(size)))
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_matrix(entries, shape=shape, dtype=np.float32)
