"""The commands that change a trained detector: its decision, and the healthy scans that it knows."""

from __future__ import annotations

from pathlib import Path

from normscan.cohort import Cohort
from normscan.progress import Progress


def calibrate(
    run: str,
    cohort: str,
    out: str | None = None,
    root: str | None = None,
    fpr: float | None = None,
    pixel_fpr: float | None = None,
    by: str | None = None,
    without: list[str] | None = None,
    device: str = "auto",
) -> None:
    """Set the thresholds of a trained detector on healthy scans of another place, without training.

    The new folder holds the same detector with other thresholds and p-values, and keeps what was
    decided before; the old one stays as it is.

    Args:
        run: run folder of the detector.
        cohort: table (CSV, TSV, Parquet) or folder with healthy scans (label 0) that did not train;
            those of train and val are taken, all of them where it gives no split.
        out: new folder; RUN_calibrated by default.
        root: folder of the table's relative paths.
        fpr: false-positive rate of the decision; the detector's own by default.
        pixel_fpr: share of a healthy scan's pixels above the pixel threshold, likewise.
        by: column such as scanner, sex or site: groups with enough healthy subjects for fpr get
            thresholds of their own, smaller ones are put together.
        without: channels that scans may lack from now on, such as '[flair]': 0 stands for them in
            every scan, and the threshold is of healthy scans that were filled in so.
        device: auto, cpu or cuda.
    """
    from normscan.detector.elsewhere import calibrate_run

    table = Cohort.read(cohort, root=root, fractions=(1.0, 0.0, 0.0))
    given = Path(run)
    folder = Path(out) if out else given.with_name(f"{given.name}_calibrated")
    with Progress() as bar:
        state = calibrate_run(
            given, table, folder, (fpr, pixel_fpr), by, device, bar, without or ()
        )
    before = state.training["earlier"][-1]["scan_threshold"]
    after = state.scan_threshold
    assert after is not None
    was = "none" if before is None else f"{float(before['threshold']):.4g}"
    print(f"{state.card.id} is calibrated. {state.training['calibration']}")
    print(f"threshold: {after.threshold:.4g}, before: {was}")
    print(f"detector: {folder}\nnext: normscan predict {folder} SCAN --out FOLDER")


def update(
    run: str,
    cohort: str,
    out: str | None = None,
    root: str | None = None,
    fractions: tuple[float, float, float] = (1.0, 0.0, 0.0),
    workers: int = 1,
    device: str = "auto",
) -> None:
    """Let new healthy scans join what a trained detector knows, without fitting anew.

    For memory banks (patchcore, anomaly_dino), Gaussians (padim, image_statistics) and the mean
    image; others are refused with the reason. The scans of train join, those of val set the
    thresholds anew. Without val the thresholds stay and are marked stale until `normscan calibrate`.

    Args:
        run: run folder of the detector, which stays as it is.
        cohort: table (CSV, TSV, Parquet) or folder with healthy scans (label 0).
        out: new folder; RUN_updated by default.
        root: folder of the table's relative paths.
        fractions: healthy subjects that join, that set the thresholds, and the rest, where the
            cohort gives no split; all of them join by default.
        workers: processes that prepare scans.
        device: auto, cpu or cuda.
    """
    from normscan.detector.update import update_run

    table = Cohort.read(cohort, root=root, fractions=fractions)
    given = Path(run)
    folder = Path(out) if out else given.with_name(f"{given.name}_updated")
    with Progress() as bar:
        state = update_run(given, table, folder, device, workers, bar)
    more = state.training["updates"][-1]
    print(
        f"{more['scans']} healthy scans of {more['subjects']} subjects joined {state.card.id}, which "
        f"knows {state.training['cohort_size']['train']} now. {state.training['calibration']}"
    )
    after = f"predict {folder} SCAN"
    if "stale" in state.training:
        after = f"calibrate {folder} --cohort HEALTHY_SCANS_THAT_DID_NOT_JOIN"
    print(f"detector: {folder}\nnext: normscan {after}")


def merge(runs: list[str], out: str) -> None:
    """Make one detector of those that several sites fitted to their own healthy scans.

    For memory banks (patchcore, anomaly_dino), Gaussians (padim, image_statistics) and the mean
    image, fitted with the same settings and the same seed. Sums end as if one site had all scans; of
    coresets the bank holds both, or as many of both as it may. No scan is read. The thresholds are
    the first run's and marked stale until `normscan calibrate`.

    Args:
        runs: run folders of the detectors, which stay as they are.
        out: new folder.
    """
    from normscan.detector.merge import merge_runs

    folder = Path(out)
    state = merge_runs([Path(run) for run in runs], folder)
    known = state.training["cohort_size"]["train"]
    print(
        f"{state.card.id} of {len(runs)} sites knows {known} scans. {state.training['calibration']}"
    )
    print(f"detector: {folder}\nnext: normscan calibrate {folder} --cohort HEALTHY_SCANS")
