"""The command ``normscan federate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def federate(
    method: str,
    cohort: str,
    out: str,
    by: str = "site",
    rounds: int = 50,
    local_epochs: int = 5,
    clients: list[str] | None = None,
    root: str | None = None,
    preset: str = "paper",
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    workers: int = 1,
    auxiliary: str | None = None,
    arguments: dict[str, Any] | None = None,
) -> None:
    """Train a method at several sites that share parameters and no scans: on one machine, for study.

    Args:
        method: id of the method, such as feddis.
        cohort: table (CSV, TSV, Parquet) or folder.
        out: new folder; the detector of site k goes to client_k in it.
        by: column of the cohort that names the site.
        rounds: of training and averaging.
        local_epochs: passes of each site over its scans in a round.
        clients: sites that take part, such as '["A", "B"]'; all by default.
        root: folder of the table's relative paths.
        preset: paper (the article), code (its released code), laptop (minutes on two cores), ...
        fractions: healthy subjects for train, val and test, where the cohort gives no split.
        seed: seed of the split, the weights and everything else that is random.
        device: auto, cpu, cuda, ...
        precision: 32-true, bf16-mixed, 16-mixed, ...
        workers: processes that prepare scans.
        auxiliary: table or folder of a second cohort, the same for all sites.
        arguments: of the method and of the detector, such as '{"width": 16, "fpr": 0.1}'.
    """
    from normscan.cohort import Cohort
    from normscan.federated import run

    table = Cohort.read(cohort, root=root, seed=seed, fractions=fractions)
    table = table if auxiliary is None else table.with_auxiliary(auxiliary)
    done = run.federate(
        method, table, out, by, rounds, local_epochs, preset, seed, clients, device, precision,
        workers, progress=True, **(arguments or {}),
    )  # fmt: skip
    print(
        f"{method} at {len(done.sites)} sites, {done.rounds} rounds: {done.parameters} numbers "
        f"shared, {done.local} kept at each site"
    )
    for k, site in enumerate(done.sites):
        print(
            f"  {site:<20}{done.samples[k]:>6} samples  sent {done.sent[k] / 1e6:.2f} MB  "
            f"received {done.received[k] / 1e6:.2f} MB  {done.folders[k]}"
        )
    print(f"summary: {Path(out) / run.SUMMARY}")
    print(f"next: normscan evaluate {done.folders[0]} --cohort {cohort}")
