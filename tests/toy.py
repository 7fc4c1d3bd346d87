"""A toy cohort that a tiny network learns in seconds, and that brightness alone doesn't solve.

Healthy: a head of dark tissue around bright tissue, both moving and changing their size. Lesioned:
the same with a soft spot that looks like healthy tissue in the wrong place (bright in the dark, dark
in the bright) or that keeps the mean intensity and has another texture. No grey value belongs to
lesions alone, so a map that is the intensity itself, as an untrained net's, finds none of them on
average, and the mean image finds them badly, since nothing stays in place.

Beside a scan stand, where they are asked for, a second modality, fainter by a factor, in which
lesions don't show, and the label map of the healthy tissues; or a further image of the case, of
another shape, which lies elsewhere, and in which a lesion shows as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

SIZE = {2: (44, 37), 3: (30, 26, 22)}
DARK, BRIGHT = 0.35, 0.75

Kind = Literal["bright", "dark", "iso"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def _ball(axes: list[np.ndarray], middle: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Soft ellipse, 1 inside and 0 outside."""
    r = np.sqrt(sum(((a - m) / s) ** 2 for a, m, s in zip(axes, middle, size, strict=True)))
    return 1 / (1 + np.exp((r - 1) * 12))


class Subject(NamedTuple):
    """A scan and what stands beside it: image (C, *shape), the others (*shape)."""

    image: np.ndarray
    mask: np.ndarray
    target: np.ndarray
    structures: np.ndarray


def toy_scan(
    rng: np.random.Generator, dims: int, channels: int, lesion: bool | Kind
) -> tuple[np.ndarray, np.ndarray]:
    """Return image (C, *shape) and mask (*shape); ``True`` draws a bright spot."""
    return toy_subject(rng, dims, channels, lesion)[:2]


def toy_subject(rng: np.random.Generator, dims: int, channels: int, lesion: bool | Kind) -> Subject:
    """Draw a subject; ``True`` draws a bright spot."""
    shape = SIZE[dims]
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    centre = rng.uniform(-0.25, 0.25, dims)
    radius = rng.uniform(0.5, 0.75, dims)
    head = _ball(axes, centre, radius)
    inner = _ball(axes, centre, radius * rng.uniform(0.5, 0.65))
    healthy = image = DARK * head + (BRIGHT - DARK) * inner
    mask = np.zeros(shape, bool)
    if lesion:
        kind = "bright" if lesion is True else lesion
        direction = rng.normal(size=dims)
        direction /= np.linalg.norm(direction)
        # In the bright tissue's middle, or in the ring of dark tissue around it.
        ring = kind == "bright" or (kind == "iso" and rng.uniform() < 0.5)
        reach = rng.uniform(0.72, 0.82) if ring else rng.uniform(0, 0.25)
        blob = _ball(axes, centre + reach * radius * direction, np.full(dims, 0.2))
        if kind == "iso":
            stripes = np.indices(shape).sum(0) % 4 < 2
            image = image + 0.2 * blob * np.where(stripes, 1, -1)
        else:
            image = image + blob * ((BRIGHT if kind == "bright" else DARK) - image)
        mask = blob > 0.5
    image = image * rng.uniform(0.95, 1.05, channels).reshape(-1, *[1] * dims)
    noise = rng.normal(0, 0.02, image.shape)
    inside = head > 0.3
    # From a source of its own: the images are the same whatever stands beside them.
    other = 0.6 * healthy + rng.spawn(1)[0].normal(0, 0.02, shape)
    return Subject(
        np.where(inside, image + noise, 0).astype(np.float32),
        mask & inside,
        np.where(inside, other, 0).astype(np.float32),
        (inside * (1 + (inner > 0.5))).astype(np.uint8),
    )


def toy_photo(image: np.ndarray) -> np.ndarray:
    """A further image of a case: its middle slice turned, and stretched to another shape."""
    plane = image[0] if image.ndim == 3 else image[0, ..., image.shape[-1] // 2]
    rows, columns = (
        np.linspace(0, n - 1, m).round().astype(int)
        for n, m in zip(plane.shape, (52, 31), strict=True)
    )
    return np.ascontiguousarray(plane[rows][:, columns].T[::-1])


def write_toy_cohort(
    folder: Path, dims: int, channels: int, beside: bool = False, further: bool = False
) -> Path:
    """Write .npy scans and a table; return the table's path.

    The column ``kind`` names a lesion's kind; all of them are equally many. With ``beside`` there
    are the columns ``target`` and ``structures``, with ``further`` there is ``further_photo``.
    """
    rng = np.random.default_rng(7)
    counts = {"train": 48, "val": 6, "test": 12, "extra": 18}
    if dims == 3:
        counts = {"train": 8, "val": 4, "test": 3, "extra": 6}
    rows = []
    names = [f"path_c{c}" for c in range(channels)]
    for split, n in counts.items():
        for label in (0, 1) if split in ("test", "extra") else (0,):
            for i in range(n):
                scan = f"{split}{label}{i:02d}"
                kind = KINDS[i % len(KINDS)] if label else ""
                image, mask, *more = toy_subject(rng, dims, channels, kind or False)
                row = {"scan": scan, "subject": scan, "label": label, "split": split}
                for c, name in enumerate(names):
                    np.save(folder / f"{scan}_c{c}.npy", image[c])
                    row["path" if channels == 1 else name] = f"{scan}_c{c}.npy"
                row["mask"] = ""
                if label:
                    np.save(folder / f"{scan}_mask.npy", mask.astype(np.uint8))
                    row["mask"] = f"{scan}_mask.npy"
                for name, array in zip(
                    ("target", "structures"), more if beside else (), strict=False
                ):
                    np.save(folder / f"{scan}_{name}.npy", array)
                    row[name] = f"{scan}_{name}.npy"
                if further:
                    np.save(folder / f"{scan}_photo.npy", toy_photo(image))
                    row["further_photo"] = f"{scan}_photo.npy"
                rows.append({**row, "kind": kind})
    table = folder / "cohort.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def write_toy_auxiliary(folder: Path, dims: int, channels: int) -> Path:
    """Write a second domain: heads of another scanner with their structures, and textures."""
    rng, rows = np.random.default_rng(11), []
    for i in range(12):
        image, _, _, structures = toy_subject(rng, dims, channels, False)
        image = np.where(image > 0, 0.1 + 0.7 * image, 0).astype(np.float32)
        row = {"label": 0, "split": "train", "structures": f"other{i}_structures.npy"}
        np.save(folder / row["structures"], structures)
        if i >= 6:
            image = rng.uniform(0.1, 1, image.shape).astype(np.float32)
            row = {"label": "", "split": "extra", "structures": ""}
        for c in range(channels):
            np.save(folder / f"other{i}_c{c}.npy", image[c])
            row["path" if channels == 1 else f"path_c{c}"] = f"other{i}_c{c}.npy"
        rows.append({"scan": f"other{i}", "subject": f"other{i}", **row})
    table = folder / "auxiliary.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table
