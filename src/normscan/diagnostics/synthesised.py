"""Artificial anomalies planted into a cohort's healthy scans and written as a cohort of its own."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.cohort import Cohort, CohortRow
from normscan.errors import CohortError, NormscanError
from normscan.io.atomic import atomic_path
from normscan.io.write import write_map
from normscan.preprocess.foreground import foreground_mask
from normscan.rng import derive_seed
from normscan.scan import Scan
from normscan.synthesis.tasks import Task

TABLE = "cohort.csv"
_EVERY = 20  # scans between two writings of the table
Track = Callable[..., Iterable[Any]]


@dataclass
class Synthesised:
    """What was written.

    Attributes:
        table: path of the cohort's table.
        rows: its rows.
        failures: scan and reason, for each that was left out.
    """

    table: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


def synthesise(
    cohort: Cohort,
    task: Task,
    folder: Path,
    split: str = "train",
    count: int | None = None,
    seed: int = 0,
    pictures: bool = True,
    track: Track | None = None,
) -> Synthesised:
    """Plant anomalies into healthy scans and write images, masks, labels, pictures and a table.

    A scan is changed in its own grid and unit: its range stands for 0..1 while something is planted.
    The donor is the next healthy scan of another subject. Files are named by number, so that the same
    call writes the same files; the table names the scan that each comes from. A scan that can't be
    read is left out and told. Each file, and the table, is there as a whole or not at all.

    Args:
        cohort: with healthy scans in the split.
        task: what is planted.
        folder: for images/, masks/, labels/, pictures/ and the table.
        split: part of the cohort.
        count: scans at most; from the first again where there are fewer, each with another seed.
        seed: of everything random.
        pictures: write a picture of each.
        track: shows progress.

    Raises:
        CohortError: the split has no healthy scan.
    """
    rows = [row for row in cohort if row.split == split and row.label == 0]
    if not rows:
        raise CohortError(f"the split '{split}' has no healthy scan. Name another --split.")
    done = Synthesised(folder / TABLE)
    wanted: Iterable[int] = range(len(rows) if count is None else count)
    for number in track(wanted) if track else wanted:
        row = rows[number % len(rows)]
        try:
            donor = _donor(rows, number) if task.donor == "another" else row
            done.rows.append(_one(row, donor, task, folder, number, seed, pictures))
        except NormscanError as error:
            done.failures.append((row.scan, str(error)))
        if (number + 1) % _EVERY == 0:
            _write_table(done)
    if not done.rows:
        raise CohortError(f"no scan could be changed; the first: {done.failures[0][1]}")
    _write_table(done)
    return done


def _donor(rows: Sequence[CohortRow], number: int) -> CohortRow:
    """The next scan of another subject; the next one where there is one subject only."""
    n = len(rows)
    host = rows[number % n]
    following = [rows[(number + k) % n] for k in range(1, n + 1)]
    return next((r for r in following if r.subject != host.subject), following[0])


def _scaled(scan: Scan) -> tuple[Tensor, Tensor, Tensor]:
    """Values from 0 to 1, (1, C, *shape), and what 0 and 1 are of each channel."""
    x = torch.from_numpy(scan.data.copy())[None]
    axes = tuple(range(2, x.ndim))
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-12), low, high


def _one(
    row: CohortRow, other: CohortRow, task: Task, folder: Path, number: int, seed: int,
    pictures: bool,
) -> dict[str, Any]:  # fmt: skip
    scan = row.load()
    x, low, high = _scaled(scan)
    objects = row.load_foreground(scan)
    objects = foreground_mask(scan.data) if objects is None else objects
    where = torch.from_numpy(np.ascontiguousarray(objects))[None, None]
    donor = _fitted(_scaled(other.load())[0], x) if other is not row else x
    own = derive_seed(seed, number)
    made, (record,) = task.plant(x, own, where, donor, scan.spacing)
    data = (low + made.image * (high - low))[0].numpy()
    # Where nothing changed the values stay as they are, to the last bit.
    data = np.where(made.region[0].numpy(), data, scan.data)
    name = f"{number:05d}"
    end = ".nii.gz" if scan.dims == 3 else ".tif"
    channels = scan.channels if len(scan.channels) > 1 else ("",)
    paths = {}
    for channel, values in zip(channels, data, strict=True):
        suffix = f"_{channel}" if channel else ""
        write_map(folder / "images" / f"{name}{suffix}{end}", values, scan)
        paths[f"path{suffix}"] = f"images/{name}{suffix}{end}"
    region, label = made.region[0, 0].numpy(), made.label[0, 0].numpy()
    write_map(folder / "masks" / f"{name}{end}", region.astype(np.uint8), scan)
    write_map(folder / "labels" / f"{name}{end}", label, scan)
    if pictures:
        _picture(folder / "pictures" / f"{name}.png", x, made.image, label, region)
    place = " ".join(f"{p:g}" for p in record.pop("place"))
    planted = int(region.any())
    return {
        "scan": name, "subject": f"{task.name}_{number:05d}", "label": planted, "split": "extra",
        **paths, "mask": f"masks/{name}{end}", "label_map": f"labels/{name}{end}",
        "source": row.scan, "donor": other.scan if other is not row else "",
        **{k: v for k, v in record.items() if k != "label"}, "label_max": record["label"],
        "place": place,
    }  # fmt: skip


def _fitted(donor: Tensor, like: Tensor) -> Tensor:
    """A donor on the host's grid and with its channels."""
    if donor.ndim != like.ndim or donor.shape[1] != like.shape[1]:
        raise CohortError("host and donor differ in their axes or channels. Use one kind of scans.")
    if donor.shape == like.shape:
        return donor
    mode = "bilinear" if like.ndim == 4 else "trilinear"
    return F.interpolate(donor, like.shape[2:], mode=mode, align_corners=False)


def _picture(
    path: Path, before: Tensor, after: Tensor, label: np.ndarray, region: np.ndarray
) -> None:
    """Healthy, changed and label side by side; of a volume the slice with most of the change."""
    from PIL import Image

    planes = [before[0].mean(0).numpy(), after[0].mean(0).numpy(), label / max(1.0, label.max())]
    if label.ndim == 3:
        k = int(region.sum((0, 1)).argmax()) if region.any() else label.shape[2] // 2
        planes = [np.flipud(p[..., k].T) for p in planes]
    strip = np.concatenate([np.clip(p, 0, 1) for p in planes], axis=1)
    with atomic_path(path) as temporary:
        Image.fromarray((255 * strip).round().astype(np.uint8)).save(temporary, format="PNG")


def _write_table(done: Synthesised) -> None:
    if not done.rows:
        return
    with atomic_path(done.table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(done.rows[0]))
        writer.writeheader()
        writer.writerows(done.rows)
