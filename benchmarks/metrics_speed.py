"""Speed of the pixel metrics beside other libraries: python benchmarks/metrics_speed.py.

Writes benchmarks/results/metrics_speed.json and .md. One process, one thread, the same arrays for
all: AUROC, average precision, AUPRO(0.3) and best Dice of 100 and 500 maps of 256 x 256 and of
10 volumes of 128^3. The peers are in benchmarks/requirements-peers.txt; one that isn't installed is
reported as missing. Then the memory of the exact and the streaming form over the number of maps,
each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
from scipy import ndimage  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SETS = {
    "100 maps": (100, (256, 256)),
    "500 maps": (500, (256, 256)),
    "10 volumes": (10, (128,) * 3),
}
COUNTS = (100, 1000, 10000)
LONG = 20.0  # A run this long (seconds) is not repeated.
NAMES = ("auroc", "ap", "aupro", "best_dice")


def data(count: int, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Maps in [0, 1] of smooth noise, brighter in the lesions that every other scan has."""
    rng = np.random.default_rng(seed)
    maps, masks = np.empty((count, *shape), np.float32), np.zeros((count, *shape), bool)
    for i in range(count):
        field, noise = (ndimage.gaussian_filter(rng.normal(size=shape), s) for s in (6.0, 1.5))
        if i % 2:
            masks[i] = field > 1.8 * field.std()
        maps[i] = np.abs(noise / noise.std() + 1.5 * masks[i])
    return maps / maps.max(), masks


def normscan_exact(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    from normscan.metrics import PixelScores

    pixels = PixelScores()
    for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels.add(scores, mask, i)
    found = pixels.evaluate(replicates=0)
    return {name: getattr(found, name).value for name in NAMES}


def normscan_streaming(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    from normscan.metrics import StreamingPixelScores

    pixels = StreamingPixelScores()
    for scores, mask in zip(maps, masks, strict=True):
        pixels.add(scores, mask)
    found = pixels.evaluate()
    widest = max(high - low for low, high in found.bounds.values())
    return {**{name: getattr(found, name) for name in NAMES}, "widest_bound": widest}


def adeval(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    if not hasattr(np, "trapz"):  # gone from NumPy 2.4; ADEval 1.1.0 calls it
        np.trapz = np.trapezoid  # noqa: NPY201
    from adeval import auroc_aupr_aupro

    flat = (-1, *maps.shape[-2:])  # volumes go in as slices: its components are in 2D
    found = auroc_aupr_aupro(list(maps.reshape(flat)), list(masks.reshape(flat).astype(np.uint8)))
    return dict(zip(("auroc", "trapezoid_aupr", "aupro"), map(float, found), strict=True))


def scikit_learn(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    scores, labels = maps.ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    dice = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "ap": float(average_precision_score(labels, scores)),
        "best_dice": float(dice.max()),
    }


def torchmetrics(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    import torch
    from torchmetrics.functional.classification import (
        binary_auroc,
        binary_average_precision,
        binary_precision_recall_curve,
    )

    scores, labels = torch.from_numpy(maps.ravel()), torch.from_numpy(masks.ravel()).long()
    precision, recall, _ = binary_precision_recall_curve(scores, labels)
    dice = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return {
        "auroc": float(binary_auroc(scores, labels)),
        "ap": float(binary_average_precision(scores, labels)),
        "best_dice": float(dice.max()),
    }


def anomalib(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    import torch
    from anomalib.metrics.aupro import _AUPRO

    flat = (-1, *maps.shape[-2:])
    metric = _AUPRO(fpr_limit=0.3)
    metric.update(torch.from_numpy(maps.reshape(flat)), torch.from_numpy(masks.reshape(flat)).int())
    return {"aupro": float(metric.compute())}


METHODS: dict[str, tuple[Callable[..., dict[str, float]], str, str]] = {
    "normscan exact": (normscan_exact, "normscan", "AUROC, AP, AUPRO, best Dice"),
    "normscan streaming": (normscan_streaming, "normscan", "the same, with bounds"),
    "ADEval, 1000 bins": (adeval, "adeval", "AUROC, trapezoid AUPR, AUPRO"),
    "scikit-learn": (scikit_learn, "sklearn", "AUROC, AP, precision-recall curve"),
    "torchmetrics": (torchmetrics, "torchmetrics", "AUROC, AP, precision-recall curve"),
    "anomalib AUPRO": (anomalib, "anomalib", "AUPRO"),
}


def timed(method: Callable[..., dict[str, float]], *arrays: np.ndarray, repeats: int = 3) -> dict:
    """Return the values, and the least wall and processor time of up to three runs."""
    wall, cpu, values = [], [], {}
    for _ in range(repeats):
        begun, used = time.perf_counter(), time.process_time()
        values = method(*arrays)
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - used)
        if wall[-1] > LONG:
            break
    return {"wall": min(wall), "cpu": min(cpu), "runs": len(wall), "values": values}


def memory(form: str, count: int) -> dict[str, float]:
    """Peak memory of this process for so many maps, made and forgotten one by one."""
    import resource

    from normscan.metrics import PixelScores, StreamingPixelScores

    maps, masks = data(8, (256, 256))
    rng, shift = np.random.default_rng(1), np.float32(0.01)
    pixels: Any = PixelScores() if form == "exact" else StreamingPixelScores()
    subject = (0,) if form == "exact" else ()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    for i in range(count):
        scores = maps[i % 8] + shift * rng.random((256, 256), np.float32)
        pixels.add(scores, masks[i % 8], *subject)
    pixels.evaluate(**({"replicates": 0} if form == "exact" else {}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "maps": count,
        "grown_mib": (peak - before) / 1024,
        "seconds": time.perf_counter() - begun,
    }


def in_own_process(form: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory", form, str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def speed() -> dict[str, Any]:
    from normscan.networks.backbones import import_timm

    import_timm()  # declares the operators that torchvision lacks beside some builds of torch
    figures: dict[str, Any] = {}
    for title, (count, shape) in SETS.items():
        arrays = data(count, shape)
        prevalence = float(arrays[1].mean())
        figures[title] = {"pixels": arrays[0].size, "prevalence": prevalence, "methods": {}}
        timed(normscan_exact, arrays[0][:2], arrays[1][:2])  # imports stay out of the figures
        for name, (method, module, _) in METHODS.items():
            if importlib.util.find_spec(module) is None:
                figures[title]["methods"][name] = None
                continue
            timed(method, arrays[0][:2], arrays[1][:2], repeats=1)
            figures[title]["methods"][name] = timed(method, *arrays)
            print(title, name, figures[title]["methods"][name], flush=True)
    return figures


def table(figures: dict[str, Any]) -> list[str]:
    lines = []
    for title, found in figures.items():
        methods = found["methods"]
        ours = methods["normscan exact"]
        lines += [
            f"## {title}",
            "",
            f"{found['pixels']:,} pixels, {found['prevalence']:.2%} of them lesion.",
            "",
            "| library | what | wall (s) | CPU (s) | CPU / ours | runs | AUROC | AP | AUPRO | best Dice |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, f in methods.items():
            what = METHODS[name][2]
            if f is None:
                lines.append(f"| {name} | {what} | not installed | | | | | | | |")
                continue
            values = " | ".join(f"{f['values'][n]:.6f}" if n in f["values"] else "" for n in NAMES)
            lines.append(
                f"| {name} | {what} | {f['wall']:.2f} | {f['cpu']:.2f} | "
                f"{f['cpu'] / ours['cpu']:.1f} | {f['runs']} | {values} |"
            )
        lines.append("")
        peers = [methods["scikit-learn"], methods["anomalib AUPRO"]]
        if all(peers):
            ratios = [sum(p[k] for p in peers) / ours[k] for k in ("wall", "cpu")]
            lines.append(
                f"scikit-learn and anomalib's AUPRO together take {ratios[0]:.1f} times the wall "
                f"time and {ratios[1]:.1f} times the CPU time of the exact form."
            )
        bound = methods["normscan streaming"]["values"]["widest_bound"]
        lines += [f"The widest guaranteed interval of the streaming form is {bound:.1e}.", ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", nargs=2, help="for the script itself")
    chosen = parser.parse_args().memory
    if chosen:
        print(json.dumps(memory(chosen[0], int(chosen[1]))))
        return
    load = os.getloadavg()[0]
    used = {form: [in_own_process(form, n) for n in COUNTS] for form in ("exact", "streaming")}
    figures = speed()
    versions = {}
    for name in ("numpy", "torch", "scikit-learn", "torchmetrics", "anomalib", "ADEval"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    lines = [
        "# Speed of the pixel metrics",
        "",
        "`python benchmarks/metrics_speed.py`, one thread, the least of three runs (runs over "
        f"{LONG:.0f} s are not repeated). {', '.join(f'{k} {v}' for k, v in versions.items())}.",
        "",
        f"Load of the machine at the start {load:.1f} on {os.cpu_count()} cores, at the end "
        f"{os.getloadavg()[0]:.1f}: read the CPU time, wall times depend on what else runs. ADEval "
        "and anomalib take volumes as slices, so their AUPRO there counts components in 2D, "
        "another number than with components in 3D. ADEval's AUPR is the trapezoid area and is "
        "left out of the column of the average precision. anomalib sums in float32.",
        "",
        *table(figures),
        "## Memory over the number of maps",
        "",
        "Growth of the peak memory of a process that adds maps of 256 x 256 one by one and "
        "evaluates them at the end.",
        "",
        "| form | " + " | ".join(f"{n} maps" for n in COUNTS) + " |",
        "|---|" + "---|" * len(COUNTS),
        *(
            f"| {form} (MiB) | " + " | ".join(f"{r['grown_mib']:.0f}" for r in rows) + " |"
            for form, rows in used.items()
        ),
    ]
    (RESULTS / "metrics_speed.md").write_text("\n".join(lines) + "\n")
    content = {
        "command": "python benchmarks/metrics_speed.py",
        "versions": versions,
        "cores": os.cpu_count(),
        "load": [load, os.getloadavg()[0]],
        "speed": figures,
        "memory": used,
    }
    (RESULTS / "metrics_speed.json").write_text(json.dumps(content, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
