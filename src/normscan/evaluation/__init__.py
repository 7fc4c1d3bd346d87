"""A detector evaluated on a cohort: its scans scored, figures with intervals, baselines, a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.evaluation.baselines import BASELINES as BASELINES
    from normscan.evaluation.evaluation import evaluate as evaluate
    from normscan.evaluation.scoring import Region as Region
    from normscan.evaluation.scoring import Scores as Scores
    from normscan.evaluation.scoring import score_cohort as score_cohort
    from normscan.evaluation.summary import METRICS as METRICS
    from normscan.evaluation.summary import summarise as summarise
    from normscan.evaluation.summary import text_summary as text_summary

__all__ = [
    "BASELINES",
    "METRICS",
    "Region",
    "Scores",
    "evaluate",
    "score_cohort",
    "summarise",
    "text_summary",
]

__getattr__ = lazily(
    __name__,
    {
        "BASELINES": "baselines",
        "METRICS": "summary",
        "Region": "scoring",
        "Scores": "scoring",
        "evaluate": "evaluation",
        "score_cohort": "scoring",
        "summarise": "summary",
        "text_summary": "summary",
    },
)
