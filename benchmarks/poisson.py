"""The batched Poisson solver beside one sparse direct solve a patch, and OpenCV's seamlessClone.

    python benchmarks/poisson.py [--threads 1]     # writes benchmarks/results/poisson.md

A batch of 32 images of 256 x 256: the whole image but its frame (boxes), and irregular blobs of
about a third of it. All three give values for the same images with mixed gradients in one process,
one after the other; the sparse solves are counted on a few images, since they are slow, and without
the time that their matrices take to build. OpenCV's row is there where ``cv2`` can be imported; it
works on 8 bits and normalises otherwise, so its values aren't compared.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.linalg import spsolve
from torch import Tensor

from normscan.synthesis.poisson import guidance, inner, solve_poisson

BATCH, SIDE, DIRECT = 32, 256, 3
RESULT = Path(__file__).parent / "results" / "poisson.md"


def images(generator: torch.Generator) -> Tensor:
    """Smooth fields with some noise, (BATCH, 1, SIDE, SIDE), 0 to 1."""
    coarse = torch.rand(BATCH, 1, 9, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    return 0.9 * smooth + 0.1 * torch.rand(smooth.shape, generator=generator)


def blobs(generator: torch.Generator) -> Tensor:
    """Irregular areas of about a third of the image."""
    coarse = torch.rand(BATCH, 1, 12, 12, generator=generator)
    field = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    return inner(field > 0.6)


def mixed(x: Tensor, s: Tensor) -> Tensor:
    """The stronger one of two differences."""
    return torch.where(x.abs() > s.abs(), x, s)


def system(image: np.ndarray, guide: np.ndarray, mask: np.ndarray) -> tuple[object, np.ndarray]:
    """Sparse matrix and right-hand side of the masked pixels."""
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    rows, columns, b = [], [], guide[mask].astype(float)
    places = np.argwhere(mask)
    for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        other = tuple((places + step).T)
        known = ~mask[other]
        b[known] += image[other][known]
        rows.append(np.flatnonzero(~known))
        columns.append(number[other][~known])
    off = np.concatenate(rows), np.concatenate(columns)
    n = len(places)
    matrix = scipy.sparse.csc_matrix((-np.ones(len(off[0])), off), (n, n))
    return (matrix + 4 * scipy.sparse.identity(n)).tocsc(), b


def seconds(run: Callable[[], object], times: int) -> float:
    """Best time of a few runs."""
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begun)
    return best


def opencv(image: Tensor, donor: Tensor, mask: Tensor) -> float | None:
    """Seconds an image of seamlessClone, or None without OpenCV."""
    try:
        import cv2
    except ImportError:
        return None

    def run() -> None:
        for x, s, m in zip(image, donor, mask, strict=True):
            host, source = ((255 * t[0].numpy()).astype(np.uint8) for t in (x, s))
            where = 255 * m[0].numpy().astype(np.uint8)
            rows, columns = np.nonzero(where)
            middle = tuple(int(t.min() + t.max() + 1) // 2 for t in (columns, rows))
            three = [np.repeat(t[..., None], 3, axis=2) for t in (source, host)]
            cv2.seamlessClone(three[0], three[1], where, middle, cv2.MIXED_CLONE)

    return seconds(run, 2) / len(image)


def row(name: str, image: Tensor, donor: Tensor, mask: Tensor) -> str:
    """Measure one kind of mask."""
    guide = guidance(image, donor, mixed)
    ours = seconds(lambda: solve_poisson(image, guide, mask), 3) / BATCH
    solved = solve_poisson(image, guide, mask)
    apart, total = 0.0, 0.0
    for i in range(DIRECT):
        matrix, b = system(*(t[i, 0].numpy() for t in (image, guide, mask)))
        begun = time.perf_counter()
        wanted = spsolve(matrix, b)
        total += time.perf_counter() - begun
        apart = max(apart, float(np.abs(solved[i, 0].numpy()[mask[i, 0].numpy()] - wanted).max()))
    direct, clone = total / DIRECT, opencv(image, donor, mask)
    cloned = "not installed" if clone is None else f"{1000 * clone:.1f} ({clone / ours:.1f}x)"
    return (
        f"| {name} | {1000 * ours:.1f} | {1000 * direct:.0f} ({direct / ours:.0f}x) | {cloned} | "
        f"{apart:.1e} |"
    )


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    image, donor = images(generator), images(generator)
    whole = inner(torch.ones(image.shape, dtype=torch.bool))
    rows = [
        row("boxes of 254 x 254", image, donor, whole),
        row("irregular masks", image, donor, blobs(generator)),
    ]
    table = "\n".join(
        [
            "| masks | ours, ms an image | sparse direct solve, ms | OpenCV, ms | largest difference |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )
    text = (
        "# Poisson solver\n\n"
        f"`python benchmarks/poisson.py --threads {options.threads}`: {BATCH} images of "
        f"{SIDE} x {SIDE} at once, float32, mixed gradients; beside it scipy's `spsolve` of the same "
        f"equations ({DIRECT} images, the matrices' construction not counted) and OpenCV's "
        f"`seamlessClone`. Differences are between ours and the direct solve, images from 0 to 1. "
        f"{platform.machine()}, {options.threads} thread(s), torch {torch.__version__}.\n\n{table}\n"
    )
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
