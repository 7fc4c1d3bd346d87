"""An evaluation written down: the table of scans and the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.errors import NormscanError
from normscan.evaluation.scoring import Scores
from normscan.io import atomic_path
from normscan.io.sheets import inert_table

if TYPE_CHECKING:
    import pandas as pd

PICTURES, TYPICAL = 6, 3
FIGURES = "figures"


def write_scans(path: Path, scores: Scores) -> pd.DataFrame:
    """Write a row for each scan as CSV and return the table."""
    import pandas as pd

    table = pd.DataFrame(scores.rows)
    with atomic_path(path) as temporary:
        inert_table(table).to_csv(temporary, index=False)
    return table


def choose(table: pd.DataFrame) -> dict[str, list[str]]:
    """Return the scans worth a picture, by section."""
    anomalous = table[table["label"] == 1].sort_values("score", ascending=False, kind="stable")
    healthy = table[table["label"] == 0].sort_values("score", ascending=False, kind="stable")
    ranked = table.sort_values("score", ascending=False, kind="stable")
    if table["anomalous"].isna().all():  # no decision, so neither misses nor false alarms
        return {"Most anomalous scans": [str(s) for s in ranked["scan"].head(PICTURES)]}
    missed = anomalous[~anomalous["anomalous"].astype(bool)].iloc[::-1]
    alarms = healthy[healthy["anomalous"].astype(bool)]
    sections = {
        "Most anomalous scans": ranked,
        "Worst misses": missed,
        "Worst false alarms": alarms,
    }
    chosen = {
        title: [str(s) for s in part["scan"].head(PICTURES)] for title, part in sections.items()
    }
    return chosen | {
        "Typical anomalous scans": _typical(anomalous),
        "Typical healthy scans": _typical(healthy),
    }


def _typical(ranked: pd.DataFrame) -> list[str]:
    """Return the scans of the subjects in the middle, each subject with its highest score."""
    subjects = ranked.drop_duplicates("subject")
    first = max(0, (len(subjects) - TYPICAL) // 2)
    return [str(s) for s in subjects["scan"].iloc[first : first + TYPICAL]]


def write_page(
    path: Path,
    detector: Detector,
    rows: Cohort,
    results: dict[str, Any],
    table: pd.DataFrame,
    radiological: bool | None = None,
) -> None:
    """Draw the scans that are worth it and write the page; see ``normscan.report.write_report``.

    The charts are written beside it, too: ``figures/*.svg``, ``*.pdf`` and their data as ``*.csv``.

    Args:
        path: of the page.
        detector: that was evaluated.
        rows: scans.
        results: of the evaluation.
        table: of the scans.
        radiological: the patient's right at the left; by default for scans from DICOM.
    """
    from normscan.report import write_report
    from normscan.report.charts import keeping
    from normscan.report.printed import write_figures

    by_name = {row.scan: row for row in rows}
    drawn: dict[str, Any] = {}
    sections = choose(table)
    for name in dict.fromkeys(s for names in sections.values() for s in names):
        row = by_name[name]
        ((_, finding),) = detector.predict_cohort([row], details=True, force=True)
        if isinstance(finding, NormscanError):
            raise finding
        mask = row.load_mask(finding.scan) if row.mask else None
        picture = finding.picture(mask, row.label, name, radiological)
        caption = " ".join(
            filter(None, [picture.caption and f"{picture.caption}.", *finding.why()])
        )
        drawn[name] = replace(picture, caption=caption)
    with keeping() as kept:
        write_report(
            path,
            results=results,
            scans=table,
            pictures={title: [drawn[n] for n in names] for title, names in sections.items()},
            pixel_threshold=detector.pixel_threshold,
        )
    write_figures(path.parent / FIGURES, kept)
