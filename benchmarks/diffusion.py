"""Speed of diffusion: simplex noise, a volume in one batch or slice by slice, and few DDIM steps.

    python benchmarks/diffusion.py [SLICES] [SIZE] [--simplex]

It writes benchmarks/results/diffusion.json and diffusion.md. Networks are those of the laptop
presets with random weights at SIZE pixels, walks those of the presets; what a map changes is told as
the mean difference over the mean of the full walk's map.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normscan.methods.base import Batch, Method
from normscan.registry import card
from normscan.rng import Rng, seeded
from normscan.synthesis.noise import _open_simplex_tables, open_simplex, open_simplex_plane

RESULTS = Path(__file__).parent / "results"
METHODS = ("anoddpm", "thor", "pddpm")


def seconds(run: Callable[[], Any], repeats: int = 1) -> float:
    """Processor time of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def looped(points: np.ndarray, permutation: np.ndarray) -> np.ndarray:
    """OpenSimplex noise point by point, as the releases' plain Python does it."""
    offsets, gradients, widen = _open_simplex_tables(3)
    shifts, slopes = offsets.tolist(), gradients.tolist()
    p, result = permutation.tolist(), []
    for x, y, z in points.tolist():
        shift = (x + y + z) / -6
        stretched = (x + shift, y + shift, z + shift)
        cell = [int(np.floor(v)) for v in stretched]
        total = 0.0
        for a, b, c in shifts:
            i, j, k = cell[0] + a, cell[1] + b, cell[2] + c
            back = (i + j + k) / widen
            dx, dy, dz = x - i - back, y - j - back, z - k - back
            weight = 2 - dx * dx - dy * dy - dz * dz
            if weight > 0:
                g = slopes[p[(p[(p[i & 255] + j) & 255] + k) & 255] % 24]
                total += weight**4 * (g[0] * dx + g[1] * dy + g[2] * dz)
        result.append(total / 103)
    return np.array(result)


def spectrum(field: np.ndarray) -> np.ndarray:
    """Power over the distance from frequency 0."""
    power = np.abs(np.fft.fftshift(np.fft.fft2(field))) ** 2
    y, x = np.indices(field.shape) - field.shape[0] // 2
    rings = np.hypot(x, y).astype(int).ravel()
    return np.bincount(rings, power.ravel())[1 : field.shape[0] // 2]


def simplex(size: int = 256) -> dict[str, float]:
    """The six octaves of a field: the loop over points, points as tensors, planes as the library does."""
    y, x = np.mgrid[:size, :size]
    points = np.stack([x, y, np.full_like(x, 200)], -1).reshape(-1, 3)
    permutation = np.random.default_rng(0).permutation(256)
    given = torch.from_numpy(permutation)
    periods = [64 / 2**octave for octave in range(6)]

    def by_loop() -> np.ndarray:
        return sum(looped(points / f, permutation) for f in periods).reshape(size, size)

    def by_points() -> torch.Tensor:
        each = (torch.from_numpy(points / f).float()[None] for f in periods)
        return sum(open_simplex(p, given[None]) for p in each)

    def by_planes() -> torch.Tensor:
        depths = (torch.tensor([200 / f]) for f in periods)
        return sum(
            open_simplex_plane((size, size), f, d, given)
            for f, d in zip(periods, depths, strict=True)
        )

    ours, theirs = by_planes().numpy(), by_loop()
    a, b = spectrum(ours), spectrum(theirs)
    return {
        "loop_s": seconds(by_loop),
        "points_s": seconds(by_points, 3),
        "planes_s": seconds(by_planes, 5),
        "largest_difference": float(np.abs(ours - theirs).max()),
        "largest_ratio_of_spectra": float(np.abs(np.log10(a / b))[:32].max()),
    }


def built(id: str, size: int, **changes: Any) -> Method:
    """A method with its laptop preset, random but equal weights."""
    entry = card(id)
    if id == "thor":
        changes["perceptual"] = "random"
    with seeded(0):
        method: Method = entry.create(**{**entry.arguments("laptop"), "size": size, **changes})
        # What is initialised to zero would leave nothing to compute.
        for parameter in method.parameters():
            if parameter.requires_grad and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return method.eval()


def volume(slices: int, size: int) -> Batch:
    """Slices of soft random anatomy."""
    g = torch.Generator().manual_seed(1)
    coarse = torch.rand(slices, 1, 6, 6, generator=g)
    image = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    inside = torch.ones(slices, 1, size, size, dtype=torch.bool)
    return Batch(image, inside, Rng(list(range(slices))), torch.linspace(0, 1, slices))


def rows(batch: Batch, at: slice) -> Batch:
    """Some slices with generators of their own."""
    numbers = list(range(len(batch)))[at]
    return Batch(batch.image[at], batch.foreground[at], Rng(numbers), batch.position[at])


def mapped(method: Method, batch: Batch, together: int) -> torch.Tensor:
    """Maps of a volume, so many slices at a time."""
    parts = [
        method.maps(rows(batch, slice(i, i + together))).map for i in range(0, len(batch), together)
    ]
    return torch.cat([p for p in parts if p is not None])


def speeds(id: str, slices: int, size: int) -> dict[str, float]:
    """Seconds of a volume one by one and in batches, and what fewer DDIM steps change."""
    batch, found = volume(slices, size), {}
    few = volume(8, size)
    plain = built(id, size)
    found["one_by_one_s"] = seconds(lambda: mapped(plain, batch, 1))
    found["batches_s"] = seconds(lambda: mapped(plain, batch, slices))
    if id == "pddpm":  # It asks the network once a patch.
        return found
    longer = {"timesteps": 1000, "level": 250}
    if id == "thor":
        longer |= {"harmonise": (200, 100, 50), "every": 50}
    full = mapped(built(id, size, **longer, sampler="ddim"), few, 8)
    for steps in (50, 25):
        method = built(id, size, **longer, sampler="ddim", sample_steps=steps)
        found[f"ddim_{steps}_s"] = seconds(lambda m=method: mapped(m, few, 8))
        apart = (mapped(method, few, 8) - full).abs().mean() / full.mean()
        found[f"ddim_{steps}_change"] = float(apart)
    return found


def main() -> None:
    """Run all and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slices", type=int, nargs="?", default=96)
    parser.add_argument("size", type=int, nargs="?", default=64)
    parser.add_argument(
        "--simplex", action="store_true", help="only that; the rest stays as stored"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    stored = RESULTS / "diffusion.json"
    with torch.no_grad():
        if asked.simplex:
            found = json.loads(stored.read_text()) | {"simplex": simplex()}
        else:
            found = {"simplex": simplex()}
            found |= {id: speeds(id, asked.slices, asked.size) for id in METHODS}
            found["run"] = {"slices": asked.slices, "size": asked.size}
    slices, size = found["run"]["slices"], found["run"]["size"]
    stored.write_text(json.dumps(found, indent=1) + "\n")
    s = found["simplex"]
    lines = [
        "# Speed of diffusion",
        "",
        f"By `python benchmarks/diffusion.py {slices} {size}`: processor seconds of one thread; "
        "networks of the laptop presets with random weights, so the maps mean nothing and only what "
        "changes in them is told.",
        "",
        f"Six octaves of OpenSimplex noise at 256 x 256: {s['loop_s']:.2f} s point by point, "
        f"{s['points_s']:.3f} s with all points as a tensor ({s['loop_s'] / s['points_s']:.0f} times), "
        f"{s['planes_s']:.3f} s lattice point by lattice point, as fields are made "
        f"({s['loop_s'] / s['planes_s']:.0f} times); largest difference "
        f"{s['largest_difference']:.1e}, spectra within "
        f"{10 ** s['largest_ratio_of_spectra'] - 1:.1e}.",
        "",
        f"| method | {slices} slices one by one, s | in one batch, s | times | 50 DDIM steps change "
        "the map of 250 by | 25 change it by |",
        "|---|---|---|---|---|---|",
    ]
    for id in METHODS:
        f = found[id]
        change = [f"{f[k]:.3f}" if k in f else "–" for k in ("ddim_50_change", "ddim_25_change")]
        times = f["one_by_one_s"] / f["batches_s"]
        cells = [f"{f['one_by_one_s']:.1f}", f"{f['batches_s']:.1f}", f"{times:.1f}", *change]
        lines.append(f"| {id} | {' | '.join(cells)} |")
    (RESULTS / "diffusion.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
