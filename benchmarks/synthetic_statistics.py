"""What released corruptions do to the same images beside ours: area, changed share, label.

    python benchmarks/synthetic_statistics.py --nsa CLONE --fpi CLONE --pii CLONE --many CLONE

The clones are those of hmsch/natural-synthetic-anomalies, jemtan/FPI, jemtan/PII and
matt-baugh/many-tasks-make-light-work; NSA's needs OpenCV, the last one pie-torch. Their functions run
as they are on healthy slices of the phantom, 128 x 128, ours on the same ones. Rewrites the rows of
the clones that are given, and those alone, in benchmarks/results/synthetic_statistics.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import torch
from torch.nn import functional as F

from normscan.phantom.config import PhantomConfig
from normscan.phantom.subject import make_subject
from normscan.rng import Rng
from normscan.synthesis import tasks
from normscan.synthesis.blends import paste

RESULT = Path(__file__).parent / "results" / "synthetic_statistics.md"
SIDE, SUBJECTS = 128, 8
Draw = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def slices() -> np.ndarray:
    """Healthy FLAIR slices (n, SIDE, SIDE), 0 to 1 in 256 steps."""
    made = [make_subject(PhantomConfig(), i).image["FLAIR"] for i in range(SUBJECTS)]
    x = torch.stack([
        F.interpolate(torch.from_numpy(m).float()[None, None], (SIDE, SIDE), mode="bilinear")[0, 0]
        for m in made
    ])  # fmt: skip
    x = x / x.amax((1, 2), keepdim=True)
    return np.asarray((255 * x).round().clamp(0, 255) / 255)


def module(path: Path) -> Any:
    """A file of a release, with what it imports and never calls stubbed."""
    for name in ("tensorflow", "tensorflow.keras", "tensorflow.keras.utils"):
        sys.modules.setdefault(name, Mock())
    import scipy.ndimage

    stub = types.ModuleType("scipy.ndimage.interpolation")
    stub.map_coordinates = scipy.ndimage.map_coordinates  # type: ignore[attr-defined]
    sys.modules.setdefault("scipy.ndimage.interpolation", stub)
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def nsa_release(folder: Path, pasted: bool = False) -> Draw:
    """NSA's function with the arguments of its chest radiographs; mixed gradients, or a plain paste."""
    import cv2

    inner = module(folder / "self_sup_data" / "self_sup_tasks.py").patch_ex

    def draw(x: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        host, donor = (np.uint8(np.round(255 * t))[..., None] for t in (x, s))
        image, label = inner(
            host, donor, num_patches=3, mode="swap" if pasted else cv2.MIXED_CLONE,
            label_mode="logistic-intensity",
            width_bounds_pct=((0.03, 0.4), (0.03, 0.4)), gamma_params=(2, 0.03, 0.05),
            intensity_logistic_params=(1 / 2, 4), min_object_pct=0.7, min_overlap_pct=0.7,
            skip_background=(0, 20), resize=True, shift=True, same=False, verbose=False,
        )  # fmt: skip
        return image[..., 0] / 255, label[..., 0]

    return draw


def fpi_release(folder: Path) -> Draw:
    """FPI's function for the brain."""
    inner = module(folder / "self_sup_task.py").patch_ex

    def draw(x: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (image, label), _ = inner(x[None, ..., None], s[None, ..., None], core_percent=0.5)
        return image[0, ..., 0], label[0, ..., 0]

    return draw


def pii_release(folder: Path) -> Draw:
    """PII's function, in this process."""
    inner = module(folder / "self_sup_task_poisson.py").poisson_patch_ex

    def draw(x: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (image, label), _ = inner(x[None, ..., None], s[None, ..., None], tolerance=1e-3)
        return image[0, ..., 0], label[0, ..., 0]

    return draw


def many_release(folder: Path, task: str) -> Draw:
    """One of the five tasks of Baugh et al., for slices whose unit is their range."""
    sys.path.insert(0, str(folder))
    load = importlib.import_module
    label = load("multitask_method.tasks.labelling").FlippedGaussianLabeller(0.2)
    settings = {"intensity_task_scale": 0.2, "min_push_dist": 0.5, "max_push_dist": 5}
    where, name = {
        "poisson_intra": ("patch_blending_task", "PoissonImageEditingMixedGradBlender"),
        "sink": ("deformation_task", "BendSinkDeformationTask"),
        "source": ("deformation_task", "BendSourceDeformationTask"),
        "intensity": ("intensity_tasks", "SmoothIntensityChangeTask"),
    }[task]
    made = getattr(load(f"multitask_method.tasks.{where}"), name)

    def draw(x: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        source = (lambda: (s[None], s > 20 / 255),) if task == "poisson_intra" else ()
        image, found = made(label, *source, **settings)(x[None], x > 20 / 255)
        return image[0], found

    return draw


def ours(name: str) -> Draw:
    """The task of a name, each time with another seed."""
    corrupt = {
        **{f"many tasks, {task}": part for task, part in tasks.five_tasks().items()},
        "fpi": tasks.fpi(0.5),
        "pii": tasks.pii(),
        "nsa": tasks.nsa(),
        "nsa, pasted": replace(tasks.nsa(), blend=paste),
    }[name]
    count = iter(range(10**9))

    def draw(x: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        host, donor = (torch.from_numpy(t).float()[None, None] for t in (x, s))
        made = corrupt(host, donor, Rng([next(count)]), host > 20 / 255, donor > 20 / 255)
        return made.image[0, 0].numpy(), made.label[0, 0].numpy()

    return draw


def row(name: str, who: str, draw: Draw, images: np.ndarray, draws: int) -> str:
    """Statistics over draws: means with their standard errors, and the label's quantiles."""
    changed, labelled, strength, empty, values = [], [], [], 0, []
    for i in range(draws):
        x, s = images[i % SUBJECTS], images[(i + 1 + i // SUBJECTS) % SUBJECTS]
        if x is s:
            s = images[(i + 1) % SUBJECTS]
        image, label = draw(x, s)
        where = np.abs(image - x) > 1.5 / 255
        changed.append(where.mean())
        labelled.append((label > 0).mean())
        empty += not (label > 0).any()
        if where.any():
            strength.append(np.abs(image - x)[where].mean())
        values.append(label[label > 0])
    q = np.quantile(np.concatenate(values), (0.1, 0.25, 0.5, 0.75, 0.9))
    shown = [
        f"{100 * np.mean(v):.2f} ± {100 * np.std(v) / np.sqrt(len(v)):.2f}"
        for v in (changed, labelled, strength)
    ]
    quantiles = " ".join(f"{v:.2f}" for v in q)
    return f"| {name} | {who} | {' | '.join(shown)} | {100 * empty / draws:.0f} | {quantiles} |"


def main() -> None:
    """Draw, compare and write."""
    parser = argparse.ArgumentParser()
    for name in ("nsa", "fpi", "pii", "many"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--draws", type=int, default=300)
    options = parser.parse_args()
    images, rows = slices(), []
    np.random.seed(0)  # theirs draw from the global state  # noqa: NPY002
    releases = {
        "fpi": fpi_release,
        "pii": pii_release,
        "nsa, pasted": partial(nsa_release, pasted=True),
        "nsa": nsa_release,
        **{
            f"many tasks, {task}": partial(many_release, task=task)
            for task in ("poisson_intra", "sink", "source", "intensity")
        },
    }
    kept = [line for line in RESULT.read_text().splitlines() if line.startswith("|")]
    for name, make in releases.items():
        folder = getattr(options, name.partition(",")[0].partition(" ")[0])
        if folder is None:
            rows += [line for line in kept if line.startswith(f"| {name} |")]
        else:
            rows.append(row(name, "release", make(folder), images, options.draws))
            rows.append(row(name, "ours", ours(name), images, options.draws))
    head = (
        "| task | whose | changed pixels, % | labelled pixels, % | change there, % | no label, % | "
        "label's deciles 1, quartiles, 9 |\n|---|---|---|---|---|---|---|\n"
    )
    text = (
        "# Released corruptions beside ours\n\n`python benchmarks/synthetic_statistics.py --nsa CLONE "
        f"--fpi CLONE --pii CLONE --many CLONE --draws {options.draws}`: the releases' own functions "
        f"and ours on the same {SUBJECTS} healthy slices of the phantom, {SIDE} x {SIDE}, in 256 grey "
        "values. Changed: by more than 1.5 of 255. Means ± standard errors over the draws.\n\n"
        f"{head}" + "\n".join(rows) + "\n\n"
        "NSA's places and sizes agree where both paste; OpenCV's clone then changes fewer pixels, and "
        "those by less, than Poisson's equation solved inside the mask.\n"
    )
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
