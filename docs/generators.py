"""Trains each generator of the adversarial methods and draws what it makes: docs/generators.py.

    python docs/generators.py --work runs/generators
    python docs/generators.py --cohort lgg.csv --out runs/lgg --work runs/lgg --weights resnet18.pth

Each method is trained with its laptop preset by `normscan fit` and measured by `normscan evaluate`,
on simulated brains, retinas or volumes, or on the cohort that is given. The picture shows what its
generator draws from noise, where it does that, and scans of the test with their restorations and
maps; the record beside it holds commands, seconds and figures. Methods with a record in WORK are
left alone, so that a run that was stopped goes on. Pictures of cohorts whose licence forbids to
pass them on belong elsewhere than in the docs: --out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from examples import measured
from pictures import grid
from torch import Tensor
from torch.nn import functional as F

import normscan as ns
from normscan.io.values import read_json, write_json
from normscan.methods.base import Batch
from normscan.phantom import simulate
from normscan.registry import card
from normscan.rng import Rng

PLACE = Path(__file__).resolve().parent / "img" / "generators"
HEALTHY, COLUMNS = 2, 6  # scans of a picture
EXTRA = 20  # lesioned brains that methods with labelled scans learn from
METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "dice")
SIMULATED: Mapping[str, Mapping[str, Any]] = {
    "brain": {
        "healthy": 240, "lesioned": 60, "modalities": ("FLAIR", "T1w"), "spacing": 2.5,
        "splits": (0.8, 0.1, 0.1),
    },
    "retina": {
        "anatomy": "retina", "healthy": 200, "lesioned": 40, "splits": (0.8, 0.1, 0.1),
    },
    "volumes": {"healthy": 24, "lesioned": 12, "dims": 3, "spacing": 4.0, "splits": (0.6, 0.2, 0.2)},
    # Second cohorts: brains of low entropy, and retinas whose layers are known.
    "plain": {
        "healthy": 100, "lesioned": 0, "spacing": 2.5, "texture": 0.0, "noise": 0.0, "bias": 0.0,
        "splits": (1.0, 0.0, 0.0), "seed": 1,
    },
    "layers": {
        "anatomy": "retina", "healthy": 100, "lesioned": 0, "splits": (1.0, 0.0, 0.0), "seed": 1,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Attributes: what it trains on, a second cohort, arguments, and what its generator draws."""

    cohort: str = "brain"
    auxiliary: str = ""
    arguments: tuple[str, ...] = ()
    drawn: Callable[[Any, Batch, Mapping[str, Any]], Tensor] | None = None
    row: str = "drawn from noise"


def uniform(method: Any, batch: Batch, given: Mapping[str, Any]) -> Tensor:
    """Images of a generator whose codes are uniform in -1..1."""
    codes = 2 * batch.rng.uniform((len(batch), given["latent"])) - 1
    made: Tensor = method.generator(codes)
    return (made + 1) / 2


def normal(method: Any, batch: Batch, given: Mapping[str, Any]) -> Tensor:
    """Images of a generator whose codes are normal."""
    made: Tensor = method.generator(batch.rng.normal((len(batch), given["latent"])))
    return (made + 1) / 2


def styled(method: Any, batch: Batch, given: Mapping[str, Any]) -> Tensor:
    """Images of a generator with styles and noise."""
    made: Tensor = method.generator(method.drawn(batch), batch.rng.normal)
    return (made + 1) / 2


def decoded(method: Any, batch: Batch, given: Mapping[str, Any]) -> Tensor:
    """Restorations of codes from the prior, which has the shape of a scan's code."""
    mean, _ = method.encode(batch.image)
    restored: Tensor = method.network.decode(batch.rng.normal(mean.shape))
    return restored


def pieces(method: Any, batch: Batch, given: Mapping[str, Any]) -> Tensor:
    """Restorations of patches side by side."""
    x, side = 2 * batch.image - 1, given["side"]
    shape = tuple(n // side * side for n in x.shape[2:])
    patches = F.unfold(x[..., : shape[0], : shape[1]], side, stride=side)
    columns = patches.movedim(1, 2).reshape(-1, x.shape[1], side, side)
    restored = method.passed(columns)[1].reshape(len(x), -1, patches.shape[1]).movedim(1, 2)
    return (F.fold(restored, shape, side, stride=side) + 1) / 2


PLANS: Mapping[str, Plan] = {
    "anogan": Plan(drawn=uniform),
    "f_anogan": Plan(drawn=normal),
    "brain_lesion_gan": Plan(drawn=uniform, row="patches from noise"),
    "ano_vae_gan": Plan(drawn=decoded, row="drawn from the prior"),
    "stylegan_swap": Plan(drawn=styled),
    "phanes": Plan(drawn=decoded, row="drawn from the prior"),
    "ganomaly": Plan(),
    "cxr_gan_occ": Plan(),
    "squid": Plan(),
    "simsid": Plan(),
    "memory_gan_oct": Plan("retina"),
    "sparse_gan": Plan("retina"),
    "p_net": Plan("retina", auxiliary="layers"),
    "chronic_infarct": Plan(drawn=pieces, row="patches restored"),
    "adversarial_inpainting": Plan(arguments=("--steps", "200")),
    "cyclegan_ad": Plan(),
    "steganomaly": Plan(auxiliary="plain"),
    "descargan": Plan(),
    "fixed_point_gan": Plan(),
    "metaad": Plan(arguments=("--dims", "2")),
    "madgan": Plan("volumes"),
    "asn_microcalc": Plan(),
}


def simulated(name: str, work: Path) -> Path:
    """Simulate a cohort, once; return its table."""
    table = work / name / "cohort.csv"
    if not table.exists():
        simulate(work / name, **SIMULATED[name])
    if name != "brain":
        return table
    # FLAIR is learnt, T1w stands beside it for methods of two modalities.
    shown = work / name / "flair.csv"
    if not shown.exists():
        rows = pd.read_csv(table).rename(columns={"path_FLAIR": "path", "path_T1w": "target"})
        rows.loc[rows.index[rows["label"] == 1][:EXTRA], "split"] = "extra"
        rows.to_csv(shown, index=False)
    return shown


def trained(id: str, table: Path, work: Path, weights: str | None) -> dict[str, Any]:
    """Fit and evaluate a method; return commands, seconds, memory and figures."""
    plan, run = PLANS[id], work / "runs" / id
    run.parent.mkdir(parents=True, exist_ok=True)
    fit = ["normscan", "fit", id, "--preset", "laptop", "--cohort", str(table), "--out", str(run)]
    fit += ["--calibration", "split", "--gate=false", "--device", "cpu", *plan.arguments]
    if plan.auxiliary:
        fit += ["--auxiliary", str(simulated(plan.auxiliary, work))]
    if weights and "weights" in card(id).defaults:
        fit += ["--weights", weights]
    test = ["normscan", "evaluate", str(run), "--cohort", str(table), "--device", "cpu"]
    found: dict[str, Any] = {"preset": "laptop", "arguments": list(plan.arguments)}
    for name, command in (("fit", [*fit, "--resume"]), ("evaluate", [*test, "--overwrite"])):
        with (run.parent / f"{id}.{name}.log").open("w") as log:
            seconds, memory, status = measured(command, log=log)
        found[name] = {
            "command": " ".join(command), "cpu_seconds": round(seconds, 1), "mib": round(memory)
        }  # fmt: skip
        if status:
            raise SystemExit(f"{id}: {name} failed; see {log.name}")
    results = read_json(run / "evaluation" / "results.json")
    found["metrics"] = {
        name: {part: round(results["metrics"][name][part], 4) for part in ("value", "low", "high")}
        for name in METRICS
        if name in results["metrics"]
    }
    return found


def chosen(run: Path, cohort: ns.Cohort) -> list[Any]:
    """Rows to show: two healthy ones, then of each kind of lesion the one with the median score."""
    scans = pd.read_csv(run / "evaluation" / "scans.csv").sort_values("score")
    healthy, lesioned = (scans[scans["label"] == label] for label in (0, 1))
    places = [round(q * (len(healthy) - 1)) for q in (0.25, 0.75)][:HEALTHY]
    names = [healthy.iloc[place]["scan"] for place in places]
    rest = COLUMNS - HEALTHY
    if "kind" in scans:
        groups = [part for _, part in lesioned.groupby("kind")]
    else:  # quarters by score
        groups = [lesioned.iloc[part] for part in np.array_split(np.arange(len(lesioned)), rest)]
    names += [part.iloc[len(part) // 2]["scan"] for part in groups[:rest] if len(part)]
    rows = {row.scan: row for row in cohort}
    return [rows[name] for name in names]


@torch.no_grad()
def draw(id: str, run: Path, table: Path, path: Path) -> None:
    """Draw the picture of a trained method."""
    detector, plan = ns.load(run), PLANS[id]
    pictures, grids = [], []
    for row in chosen(run, ns.Cohort.read(table)):
        scan = row.load()
        finding = detector.predict(scan, row.load_foreground(scan))
        title = row.columns.get("kind") or ("lesioned" if row.label else "healthy")
        pictures.append(finding.picture(row.load_mask(scan), row.label, str(title)))
        if plan.drawn is not None:
            grids.append(torch.as_tensor(detector.preprocess(scan, 2).image)[:1].float())
    above: dict[str, Sequence[Any]] = {}
    if plan.drawn is not None:
        image = torch.stack(grids)
        batch = Batch(
            image, torch.ones_like(image, dtype=torch.bool), Rng(0), torch.zeros(len(image))
        )
        made = plan.drawn(detector.method.eval(), batch, detector.arguments)[:, 0]
        above[plan.row] = list(made.clamp(0, 1).numpy())
    figure = grid(pictures, detector.pixel_threshold, above, letters=15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=56, pil_kwargs={"quality": 80, "method": 6})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/generators"))
    parser.add_argument("--out", type=Path, default=PLACE, help="of pictures and records")
    parser.add_argument("--only", default=",".join(PLANS), help="ids, separated by commas")
    parser.add_argument("--cohort", type=Path, help="table to train on, for all methods")
    parser.add_argument("--weights", help="path of a state dict, for methods with a backbone")
    parser.add_argument("--draw", action="store_true", help="draw what is trained, train nothing")
    options = parser.parse_args()
    for id in options.only.split(","):
        kept = options.work / "runs" / f"{id}.json"
        if not kept.exists() and options.draw:
            print(f"{id}: not trained", file=sys.stderr)
            continue
        table = options.cohort or simulated(PLANS[id].cohort, options.work)
        if not kept.exists():
            write_json(kept, trained(id, table, options.work, options.weights))
        record = {"cohort": table.stem if options.cohort else PLANS[id].cohort, **read_json(kept)}
        draw(id, options.work / "runs" / id, table, options.out / f"{id}.webp")
        write_json(options.out / f"{id}.json", record)
        print(id, json.dumps(record["metrics"]), flush=True)


if __name__ == "__main__":
    main()
