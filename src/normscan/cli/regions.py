"""The command that scores the regions of healthy scans, so that a finding's can be held against them."""

from __future__ import annotations

from pathlib import Path


def regions(
    run: str,
    cohort: str,
    out: str | None = None,
    root: str | None = None,
    names: str | None = None,
    reduction: str = "top_5_percent",
    device: str = "auto",
) -> None:
    """Score anatomical regions of healthy scans that did not train, for p-values by region.

    Args:
        run: run folder of the detector.
        cohort: table with label maps in the column structures; its healthy scans (label 0) of train
            and val that the detector did not learn from are taken.
        out: file to write; RUN/regions.json by default.
        root: folder of the table's relative paths.
        names: table with the columns label and name.
        reduction: from the map inside a region to its score, such as mean or max.
        device: auto, cpu or cuda.
    """
    from normscan.cohort import Cohort
    from normscan.detector import load
    from normscan.detector.regions import Regions, read_names
    from normscan.progress import Progress

    told = {} if names is None else read_names(Path(names))
    table = Cohort.read(cohort, root=root, fractions=(1.0, 0.0, 0.0))
    with Progress() as bar:
        found = Regions.fit(load(run, device), table, told, reduction, bar)
    path = Path(out) if out else Path(run) / "regions.json"
    found.save(path)
    fewest = min(threshold.n for threshold in found.thresholds.values())
    print(f"{len(found.thresholds)} regions, each of {fewest} healthy subjects or more.")
    print(f"regions: {path}\nnext: normscan predict {run} --cohort TABLE --regions {path}")
