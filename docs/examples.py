"""Runs every method on one small phantom, for the pictures and figures of the methods' pages.

    python docs/examples.py --work runs/examples

Each method is a cell of the protocol `local` in a process of its own, as `normscan benchmark` runs
it: preset `lite0` where the method has it, else `laptop`, with at most STEPS updates a phase. The
lesioned test scan with the median lesion is drawn. What takes more than LIMIT CPU-seconds is ended
and said so. A method with a record is left alone without --redo.
Weights that no package brings are given as in `normscan benchmark`: --arguments '{"weights": ...}'.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

import normscan as ns
from normscan.benchmark.cell import Job
from normscan.benchmark.data import Data
from normscan.benchmark.plan import make_plan
from normscan.benchmark.protocol import load
from normscan.io.values import read_json, write_json
from normscan.phantom import simulate
from normscan.registry import Card, load_all
from normscan.report.overlay import overlay_image
from normscan.report.picture import Picture

PLACE = Path(__file__).resolve().parent / "img" / "methods"
PHANTOM = {"healthy": 80, "lesioned": 40, "seed": 0}
EXTRA = 16  # lesioned scans that only methods with unlabelled scans learn from
STEPS, LIMIT = 100, 30
WIDTH, QUALITY = 640, 80
METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "dice")


def cohort(work: Path) -> Path:
    """Simulate the phantom, with some lesioned scans apart; return its table."""
    path = work / "phantom.csv"
    if not path.exists():
        made = ns.Cohort.read(simulate(work / "phantom", **PHANTOM))
        table = made.table.copy()
        lesioned = table.index[table["label"] == 1]
        table.loc[lesioned[:EXTRA], "split"] = "extra"
        ns.Cohort(table, made.root).write(path)
    return path


def chosen(card: Card, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the preset and the arguments of a method."""
    preset = "lite0" if "lite0" in card.presets else "laptop"
    own = {k: v for k, v in given.items() if k in card.defaults and preset != "lite0"}
    own |= given.get(card.id, {}) if preset != "lite0" else {}
    steps = {
        name: STEPS
        for name, value in card.arguments(preset).items()
        if (name == "steps" or name.endswith("_steps")) and isinstance(value, int) and value > STEPS
    }
    return preset, {**steps, **own}


def job_of(card: Card, table: Path, work: Path, given: Mapping[str, Any]) -> Job:
    preset, arguments = chosen(card, given)
    plan = make_plan(
        load("local"), [card.id], work, Data({"phantom": table}), seeds=1, preset=preset,
        arguments={card.id: arguments}, device="cpu", redo=True,
    )  # fmt: skip
    return next(job for job in plan.jobs if job.method == card.id)


def measured(
    command: Sequence[str], limit: int | None = None, log: IO[str] | None = None
) -> tuple[float, float, int]:
    """Run a command; return its CPU-seconds, peak MiB and exit status.

    Args:
        command: its words.
        limit: CPU-seconds after which it is ended.
        log: where its output goes; to the screen by default.
    """
    import resource

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))

    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=log, preexec_fn=bound,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, process.returncode


def run(job: Job, work: Path) -> tuple[float, float, int]:
    """Run a cell in a process of its own; return its CPU-seconds, peak MiB and exit status."""
    settings = work / "job.json"
    write_json(settings, asdict(job))
    return measured([sys.executable, "-m", "normscan.benchmark.cell", str(settings)], LIMIT)


def median_lesion(table: Path) -> str:
    """Return the lesioned test scan whose lesion has the median area."""
    rows = [row for row in ns.Cohort.read(table).part("test") if row.label == 1]
    areas = [int(row.load_mask(row.load()).sum()) for row in rows]
    return rows[int(np.argsort(areas)[len(areas) // 2])].scan


def drawn(job: Job, table: Path, scan_id: str) -> Image.Image:
    """Draw a scan, its restoration where there is one, and the map over it, side by side."""
    detector = ns.load(job.run)
    row = next(row for row in ns.Cohort.read(table) if row.scan == scan_id)
    scan = row.load()
    finding = detector.predict(scan, row.load_foreground(scan))
    picture: Picture = finding.picture(row.load_mask(scan), 1, "anomaly map")
    blank = replace(picture, map=np.full_like(picture.map, np.nan), mask=None)
    tiles = [overlay_image(replace(blank, title="scan"))]
    if picture.reconstruction is not None:
        restored = replace(blank, image=picture.reconstruction, title="restoration")
        tiles.append(overlay_image(restored))
    tiles.append(overlay_image(picture, detector.pixel_threshold))
    height = max(tile.height for tile in tiles)
    whole = Image.new("RGB", (sum(t.width for t in tiles) + 8 * (len(tiles) - 1), height), "black")
    left = 0
    for tile in tiles:
        whole.paste(tile.convert("RGB"), (left, 0))
        left += tile.width + 8
    share = WIDTH / (3 * tiles[0].width + 16)
    return whole.resize((round(whole.width * share), round(height * share)))


def record(card: Card, table: Path, work: Path, given: Mapping[str, Any], scan: str) -> Any:
    """Run one method, draw it, and return what its page says."""
    work.mkdir(parents=True, exist_ok=True)
    job = job_of(card, table, work, given)
    seconds, memory, status = run(job, work)
    preset, arguments = chosen(card, given)
    named = {k: Path(v).name if k == "weights" else v for k, v in arguments.items()}
    entry: dict[str, Any] = {
        "phantom": PHANTOM, "extra": EXTRA, "most_steps": STEPS, "limit": LIMIT, "preset": preset,
        "arguments": named, "seconds": round(seconds, 1),
    }  # fmt: skip
    folder = Path(job.cells["phantom"])
    if not (folder / "cell.json").exists():
        failed = folder / "error.json"
        over = f"took more than {LIMIT} CPU-seconds" if status else "failed"
        return {**entry, "not_run": read_json(failed)["reason"] if failed.exists() else over}
    found = read_json(folder / "evaluation" / "results.json")["metrics"]
    entry["memory_mib"] = round(memory)
    entry["metrics"] = {name: round(found[name]["value"], 3) for name in METRICS if name in found}
    if "pixel_ap" in found:
        picture = drawn(job, table, scan)
        picture.save(PLACE / f"{card.id}.jpg", quality=QUALITY, subsampling=0, optimize=True)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/examples"))
    parser.add_argument("--only", default="", help="ids, separated by commas")
    parser.add_argument("--redo", action="store_true", help="run those with a record again")
    parser.add_argument("--arguments", type=json.loads, default={}, help="as for the benchmark")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    table = cohort(options.work)
    scan = median_lesion(table)
    cards = {id: card for id, card in load_all().items() if 2 in card.dims}
    only = options.only.split(",") if options.only else list(cards)
    PLACE.mkdir(parents=True, exist_ok=True)
    for id in [id for id in cards if id in only]:
        path = PLACE / f"{id}.json"
        if options.redo or not path.exists():
            entry = record(cards[id], table, options.work / id, options.arguments, scan)
            write_json(path, entry)
            print(id, json.dumps(entry), flush=True)


if __name__ == "__main__":
    main()
