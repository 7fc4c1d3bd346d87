"""Quality gate: who passes whose gate, what damage is found, and how long a check takes.

    python benchmarks/quality_gate.py --data ../shared/data --work WORK

A gate is fitted on the healthy training scans of each set, with its healthy validation scans held
out, and judges the test scans of every set, healthy and lesioned, and damaged copies of its own
healthy test scans. Writes ``benchmarks/results/quality_gate.json`` and ``.md``.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from _options import gate_options, parsed
from normscan.cohort import Cohort
from normscan.io import read_scan
from normscan.io.values import write_json
from normscan.phantom import simulate
from normscan.quality import Gate, GateBuilder
from normscan.quality.gate import Profile
from normscan.scan import Scan

REAL = (
    "brain_mri_kaggle", "head_ct_kaggle", "chest_xray_kermany_224", "lgg_flair_slices",
    "magnetic_tile_defects",
)  # fmt: skip
PHANTOMS = {
    "phantom_2d": {"healthy": 120, "lesioned": 48},
    "phantom_3d": {"healthy": 40, "lesioned": 16, "dims": 3, "spacing": 3.0},
}
LOOSE = {"real_volumes": ("*3d/**/*.nii.gz", 3), "brats_2d": ("brats_2d*/t*ing/**/*.nii.gz", 2)}
MASKS = ("mask", "mav", "gold", "lesiont2", "seg")
MOST = {"train": 300, "val": 100, "test": 150}
DAMAGED = 30
RESULTS = Path(__file__).parent / "results"


@dataclass
class Set:
    """Scans of a set: the builder of its gate, and profiles of its test scans by label."""

    builder: GateBuilder | None
    test: dict[int, list[Profile]] = field(default_factory=dict)
    healthy: list[Scan] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def take(self, scan: Scan, label: int) -> None:
        begun = time.perf_counter()
        profile = Profile.of(scan)
        self.seconds.append(time.perf_counter() - begun)
        self.test.setdefault(label, []).append(profile)


def thinned(rows: list, most: int) -> list:
    return rows[:: max(1, len(rows) // most)][:most]


def load(name: str, data: Path, work: Path) -> Set:
    """Read a set once."""
    if name in LOOSE:
        pattern, dims = LOOSE[name]
        found = Set(None)
        for path in sorted(data.glob(pattern)):
            if not any(m in path.name.lower() for m in MASKS):
                scan = read_scan(path)
                if scan.dims == dims:
                    # Templates and healthy volumes stand with the others: all are foreign here.
                    found.take(scan, 1)
        return found
    if name in PHANTOMS and not (work / name).exists():
        simulate(work / name, **PHANTOMS[name])
    cohort = Cohort.read(work / name if name in PHANTOMS else data / name)
    found = Set(GateBuilder())
    for split in ("train", "val"):
        for row in thinned(list(cohort.part(split)), MOST[split]):
            found.builder.add(row.load(), row.subject, held_out=split == "val")
    for label in (0, 1):
        rows = [r for r in cohort.part("test") if r.label == label]
        for row in thinned(rows, MOST["test"]):
            found.take(row.load(), label)
        if label == 0:
            found.healthy = [row.load() for row in thinned(rows, DAMAGED)]
    return found


def part(data: np.ndarray, axis: int, start: float, share: float) -> tuple[np.ndarray, slice]:
    moved = np.moveaxis(data, axis, 0)
    n = len(moved)
    return moved, slice(int(start * n), int((start + share) * n))


def emptied(axis: int, start: float, share: float) -> Callable[[np.ndarray], np.ndarray]:
    def damage(data: np.ndarray) -> np.ndarray:
        moved, where = part(data, axis, start, share)
        moved[where] = 0
        return data

    return damage


def repeated(data: np.ndarray) -> np.ndarray:
    moved, where = part(data, data.ndim - 1, 0.5, 0.25)
    moved[where] = moved[where.start]
    return data


def damages(name: str) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    vertical = 2 if name.startswith("phantom") else 1
    rng = np.random.default_rng(0)
    return {
        "as it is": lambda d: d,
        "half set to 0": emptied(vertical, 0.5, 0.5),
        "slab of 1/8 set to 0": emptied(vertical, 0.45, 0.125),
        "a quarter repeats one slice or line": repeated,
        "upside-down or back to front": lambda d: np.flip(d, vertical),
        "mirrored left-right": lambda d: np.flip(d, 3 - vertical if d.ndim == 3 else 1),
        "turned by 90 degrees": lambda d: np.rot90(d, 1, (1, 2)),
        "inverted contrast": lambda d: d.max() - d,
        "noise": lambda d: rng.normal(100, 20, d.shape),
        "values times 100": lambda d: d * 100,
        "Hounsfield units": lambda d: np.round(d / d.max() * 1500 - 1024),
    }


def damaged(gate: Gate, found: Set, name: str) -> Iterator[tuple[str, dict[str, float], str]]:
    for title, change in damages(name).items():
        verdicts = [
            gate.check(
                Scan(np.ascontiguousarray(change(s.data.copy())), s.affine, s.channels, s.source)
            )
            for s in found.healthy
        ]
        reason = next((v.reasons[0] for v in verdicts if v.reasons), "")
        yield title, rates([v.status for v in verdicts]), reason


def rates(statuses: list[str]) -> dict[str, float]:
    counts = Counter(statuses)
    shares = {s: round(counts[s] / len(statuses), 4) for s in ("ok", "flag", "refuse")}
    return {"n": len(statuses), **shares}


def cell(entry: dict[str, float]) -> str:
    return "{:.0f} / {:.0f} / {:.0f}".format(*(100 * entry[s] for s in ("ok", "flag", "refuse")))


def measure(data: Path, work: Path) -> dict:
    sets = {}
    for name in (*REAL, *PHANTOMS, *LOOSE):
        sets[name] = load(name, data, work)
        print(f"read {name}", flush=True)
    results: dict = {"matrix": {}, "damage": {}, "gates": {}, "seconds": {}}
    for name, found in sets.items():
        seconds = np.array(found.seconds)
        results["seconds"][name] = {
            "median": round(float(np.median(seconds)), 4), "max": round(float(seconds.max()), 4)
        }  # fmt: skip
        if found.builder is None:
            continue
        begun = time.perf_counter()
        gate = found.builder.build()
        built = time.perf_counter() - begun
        size = len(json.dumps(gate.to_dict()))
        results["gates"][name] = {
            "train": gate.counts[0], "held_out": gate.counts[1], "bytes": size,
            "build_seconds": round(built, 2),
        }  # fmt: skip
        results["matrix"][name] = {
            f"{other}, {'lesioned' if label else 'healthy'}"
            if other not in LOOSE
            else other: rates([gate.judge(p).status for p in profiles])
            for other, scans in sets.items()
            for label, profiles in scans.test.items()
        }
        results["damage"][name] = {
            title: {**entry, "example": reason}
            for title, entry, reason in damaged(gate, found, name)
        }
        print(f"judged by {name}", flush=True)
    return results


def table(results: dict, command: str) -> str:
    gates = list(results["matrix"])
    lines = [
        "# Quality gate", "", f"Command: `{command}`", "",
        "Each cell: percent accepted / flagged / refused. A column is a gate, fitted on the healthy "
        "training and validation scans of that set; its own test scans are in bold. At most "
        f"{MOST['train']} training and {MOST['test']} test scans of a label.", "",
        "## Who passes whose gate", "",
        "| test scans | n | " + " | ".join(gates) + " |", "|---|---|" + "---|" * len(gates),
    ]  # fmt: skip
    for row in results["matrix"][gates[0]]:
        entries = {g: results["matrix"][g][row] for g in gates}
        cells = [f"**{cell(e)}**" if row.startswith(g) else cell(e) for g, e in entries.items()]
        lines.append(f"| {row} | {entries[gates[0]]['n']} | " + " | ".join(cells) + " |")
    lines += ["", f"## Damaged copies of up to {DAMAGED} healthy test scans of the same set", ""]
    lines += ["| change | " + " | ".join(gates) + " |", "|---|" + "---|" * len(gates)]
    for title in results["damage"][gates[0]]:
        cells = [cell(results["damage"][g][title]) for g in gates]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", "## Size and time", ""]
    lines += ["One thread. A check is the measuring; comparing takes about a millisecond.", ""]
    lines += [
        "| set | training + held-out scans | gate, KiB | to build, s | a check, ms: median (max) |"
    ]
    lines += ["|---|---|---|---|---|"]
    for name, seconds in results["seconds"].items():
        gate = results["gates"].get(name)
        made = (
            f"{gate['train']} + {gate['held_out']} | {gate['bytes'] / 1024:.0f} | "
            f"{gate['build_seconds']:.1f}"
            if gate
            else "- | - | -"
        )
        times = f"{1000 * seconds['median']:.0f} ({1000 * seconds['max']:.0f})"
        lines.append(f"| {name} | {made} | {times} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = parsed(gate_options(__doc__))
    results = measure(options.data, options.work)
    command = "python benchmarks/quality_gate.py --data ../shared/data --work WORK"
    write_json(RESULTS / "quality_gate.json", {"command": command, **results})
    (RESULTS / "quality_gate.md").write_text(table(results, command), encoding="utf-8")
    print(f"written: {RESULTS / 'quality_gate.md'}")


if __name__ == "__main__":
    main()
