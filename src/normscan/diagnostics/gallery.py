"""Pictures of artificial anomalies: what each task makes of a simulated slice or volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscan.io.atomic import atomic_path
from normscan.phantom.config import PhantomConfig
from normscan.phantom.subject import make_subject
from normscan.synthesis.tasks import TASKS, Task

Hosts = tuple[Tensor, Tensor, Tensor]
"""Host and donor (1, 1, *spatial), 0 to 1, and the host's anatomy."""


def phantom_hosts(dims: int = 2, seed: int = 0) -> Hosts:
    """Two healthy subjects of the phantom.

    Args:
        dims: a slice of 1.5 mm or a volume of 3 mm.
        seed: of the subjects.
    """
    config = PhantomConfig(dims=dims, spacing=1.5 if dims == 2 else 3.0, seed=seed)
    made = [make_subject(config, index) for index in range(2)]
    host, donor = (torch.from_numpy(m.image["FLAIR"]).float()[None, None] for m in made)
    top = host.max()
    return (
        (host / top).clamp(0, 1),
        (donor / top).clamp(0, 1),
        torch.from_numpy(made[0].brain)[None, None],
    )


def planted_picture(task: Task, hosts: Hosts, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Host, corrupted image, label and region (H, W) of a task; of a volume its fullest slice.

    The first seed from ``seed`` that plants something is taken.
    """
    x, donor, objects = hosts
    for attempt in range(20):
        made, _ = task.plant(x, seed + attempt, objects, donor)
        if bool(made.region.any()):
            break
    planes = [t[0, 0].cpu().numpy() for t in (x, made.image, made.label, made.region)]
    if x.ndim == 5:
        k = int(planes[3].sum((0, 1)).argmax())
        planes = [p[..., k] for p in planes]
    return tuple(planes)


def _upright(plane: np.ndarray) -> np.ndarray:
    """First axis to the right, second up, as the phantom's grid lies."""
    return np.flipud(plane.T)


def _show(axis: Any, plane: np.ndarray, label: np.ndarray | None = None) -> None:
    axis.imshow(_upright(plane), cmap="gray", vmin=0, vmax=1)
    if label is not None and label.any():
        axis.contour(
            _upright(label), levels=[0.5 * float(label.max())], colors="#ff8c00", linewidths=0.7
        )
    axis.set_axis_off()


def draw_task(path: Path, task: Task, hosts: Hosts, seed: int = 0) -> None:
    """Write a picture of a task: host, corrupted image, and that with its label's outline."""
    from matplotlib.figure import Figure

    host, image, label, _ = planted_picture(task, hosts, seed)
    figure = Figure(figsize=(6, 2.3), layout="constrained")
    for axis, (plane, outline, title) in zip(
        figure.subplots(1, 3),
        ((host, None, "healthy"), (image, None, task.name), (image, label, "label")),
        strict=True,
    ):
        _show(axis, plane, outline)
        axis.set_title(title, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def draw_gallery(path: Path, dims: int = 2, seed: int = 0, columns: int = 7) -> None:
    """Write one picture of all tasks on the same slice or volume, each with its label's outline."""
    from matplotlib.figure import Figure

    hosts = phantom_hosts(dims, seed)
    shown: list[tuple[str, np.ndarray, np.ndarray | None]] = []
    for task in TASKS.values():
        host, image, label, _ = planted_picture(task, hosts, seed)
        if not shown:
            shown.append(("healthy", host, None))
        shown.append((task.name, image, label))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.6 * columns, 2.05 * rows), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns).ravel()
    for axis, (title, image, outline) in zip(axes, shown, strict=False):
        _show(axis, image, outline)
        axis.set_title(title, fontsize=8)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
