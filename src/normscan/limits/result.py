"""The limits: the table, the fitted curves, what they mean in words, and the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.detector import storage
from normscan.errors import ArgumentError, NormscanError, nearest
from normscan.limits.curves import (
    LEVELS,
    PROBABILITIES,
    Limit,
    Surface,
    cells,
    healthy_rate,
    surfaces,
)
from normscan.limits.sources import BLOB, Source
from normscan.metrics.predictive import proportion

if TYPE_CHECKING:
    import pandas as pd

    from normscan.detector import Detector
    from normscan.report import Picture

EXAMPLES = 3
NAMES = {"scan": "the scan is flagged", "lesion": "the lesion is segmented"}
FAINTEST, LARGEST = "faintest found", "largest missed"


@dataclass(eq=False)
class Limits:
    """What a detector finds of lesions planted into healthy scans.

    Attributes:
        rows: one row per planted lesion and one per healthy twin (``size`` 0): subject, scan,
            size, contrast, place, score, p-value, whether the scan was flagged and the lesion
            found, and what the quality gate says.
        table: one row per level, contrast and size, see `normscan.limits.curves.cells`.
        surfaces: the fitted probabilities of each level and sign of the contrast.
        about: detector, operating point, scans, grid.
        failures: what was left out, and why.
        notes: what a reader must know.
        examples: pictures of the faintest lesions found and the largest missed.
    """

    rows: pd.DataFrame
    table: pd.DataFrame
    surfaces: list[Surface]
    about: dict[str, Any]
    failures: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    examples: dict[str, list[Picture]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rows: Sequence[dict[str, Any]],
        about: dict[str, Any],
        failures: list[dict[str, str]] | None = None,
        notes: Sequence[str] = (),
        replicates: int = 200,
        seed: int = 0,
    ) -> Limits:
        """Count and fit.

        Args:
            rows: as in ``limits.csv``.
            about: the plan and the detector.
            failures: what was left out.
            notes: of the scans.
            replicates: bootstrap resamples of the subjects.
            seed: of the resampling.
        """
        import pandas as pd

        frame = pd.DataFrame(rows).sort_values(["site", "size", "contrast"], kind="stable")
        frame = frame.reset_index(drop=True)
        mapped = (frame.loc[frame["size"] > 0, "found"] != "").all()
        levels = list(LEVELS) if mapped else ["scan"]
        table = pd.concat([cells(frame, level) for level in levels], ignore_index=True)
        fitted = [s for level in levels for s in surfaces(frame, level, replicates, seed)]
        by = {(s.level, s.sign): s.curve for s in fitted}
        table["fit"] = [
            float(by[level, int(np.sign(contrast))].probability(size, contrast))
            for level, contrast, size in zip(
                table["level"], table["contrast"], table["size"], strict=True
            )
        ]
        found = cls(frame, table, fitted, about, list(failures or []), list(notes))
        found.notes += _remarks(found)
        return found

    @property
    def levels(self) -> list[str]:
        """``scan``, and ``lesion`` where the detector gives maps."""
        return list(dict.fromkeys(self.table["level"]))

    @property
    def unit(self) -> str:
        """What a contrast of 1 is."""
        if self.about["kind"] == BLOB:
            return "robust SD of the foreground"
        return "of the lesion's usual change"

    def smallest(self, contrast: float, probability: float = 0.5, level: str = "scan") -> Limit:
        """Return the smallest diameter that is found, in ``length``.

        Args:
            contrast: within the tested ones of its sign.
            probability: of detection, in (0, 1).
            level: ``scan`` or ``lesion``.

        Raises:
            ArgumentError: a contrast outside what was tested, or no such level.
        """
        surface = self._surface(level, contrast)
        _inside("contrast", abs(contrast), surface.contrasts)
        return surface.smallest(contrast, _share(probability))

    def faintest(
        self, size: float, probability: float = 0.5, level: str = "scan", sign: int = 1
    ) -> Limit:
        """Return the faintest contrast, without sign, that is found.

        Args:
            size: diameter in mm, within the tested ones.
            probability: of detection, in (0, 1).
            level: ``scan`` or ``lesion``.
            sign: 1 for brighter lesions, -1 for darker ones.

        Raises:
            ArgumentError: a size outside what was tested, or no such level or sign.
        """
        surface = self._surface(level, sign)
        _inside("size", size, surface.sizes)
        return surface.faintest(size, _share(probability))

    def _surface(self, level: str, sign: float) -> Surface:
        if level not in self.levels:
            raise ArgumentError(
                f"there is no level '{level}' here.{nearest(level, self.levels)} "
                f"There is: {', '.join(self.levels)}."
            )
        for surface in self.surfaces:
            if surface.level == level and surface.sign * sign > 0:
                return surface
        raise ArgumentError("no lesion of that sign was planted.")

    @property
    def length(self) -> str:
        """Unit of diameters: mm, or px where the scans give no spacing."""
        return str(self.about.get("length", "mm"))

    def summary(self) -> list[dict[str, Any]]:
        """Return the smallest diameter for each level, contrast and probability of detection."""
        return [
            {
                "level": surface.level,
                "contrast": surface.sign * contrast,
                "probability": probability,
                **surface.smallest(contrast, probability).to_dict(),
            }
            for surface in self.surfaces
            for contrast in surface.contrasts
            for probability in PROBABILITIES
        ]

    def healthy(self) -> dict[str, Any]:
        """Return how many of the healthy twins were flagged, with the Wilson interval."""
        twins = self.rows[self.rows["size"] == 0].drop_duplicates("scan")
        share = proportion(int(twins["flagged"].astype(bool).sum()), len(twins))
        return {"flagged": int(twins["flagged"].astype(bool).sum()), **share.to_dict()}

    def gate(self) -> dict[str, dict[str, int]]:
        """Return what the quality gate says of the healthy twins and of the planted scans."""
        groups = {"healthy": self.rows["size"] == 0, "planted": self.rows["size"] > 0}
        return {
            name: {str(k): int(v) for k, v in self.rows.loc[which, "gate"].value_counts().items()}
            for name, which in groups.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: about, healthy twins, limits, cells, gate, failures, notes."""
        return {
            "about": self.about,
            "healthy": self.healthy(),
            "limits": self.summary(),
            "cells": [_finite(row) for row in self.table.to_dict("records")],
            "curves": [{"level": s.level, "sign": s.sign, **vars(s.curve)} for s in self.surfaces],
            "gate": self.gate(),
            "failures": self.failures,
            "notes": self.notes,
            "versions": storage.versions(),
        }

    def __str__(self) -> str:
        """Return the limits as a table for the terminal."""
        healthy = self.healthy()
        lines = [
            f"{self.about['method']}: {len(self.rows) - (self.rows['size'] == 0).sum()} lesions "
            f"planted; {healthy['flagged']} of {healthy['n']} healthy twins flagged",
        ]
        for level in self.levels:
            lines += ["", f"smallest diameter in {self.length} that is found: {NAMES[level]}"]
            heads = "".join(f"{f'{p:.0%} of the time':<26}" for p in PROBABILITIES)
            lines.append(f"  {'contrast':<12}{heads}".rstrip())
            for contrast in sorted(set(self.table["contrast"]), reverse=True):
                limits = (self.smallest(contrast, p, level) for p in PROBABILITIES)
                lines.append(
                    f"  {contrast:<+12g}{''.join(f'{limit!s:<26}' for limit in limits)}".rstrip()
                )
        return "\n".join([*lines, "", *(f"note: {note}" for note in self.notes)])


def _share(probability: float) -> float:
    if not 0 < probability < 1:
        raise ArgumentError(f"a probability of detection lies between 0 and 1, not {probability}.")
    return probability


def _inside(what: str, value: float, tested: tuple[float, ...]) -> None:
    if not tested[0] <= value <= tested[-1]:
        raise ArgumentError(
            f"a {what} of {value:g} was not tested: {tested[0]:g} to {tested[-1]:g} were."
        )


def _finite(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(k): None if v != v else v for k, v in row.items()}


def _remarks(limits: Limits) -> list[str]:
    """Say where the figures need care."""
    said = []
    for surface in limits.surfaces:
        part = limits.table[limits.table["level"] == surface.level]
        part = part[np.sign(part["contrast"]) == surface.sign]
        off = int(((part["fit"] < part["low"]) | (part["fit"] > part["high"])).sum())
        if off > 0.1 * len(part):
            said.append(
                f"{'Brighter' if surface.sign > 0 else 'Darker'} lesions, {NAMES[surface.level]}: "
                f"the fit lies outside the interval of {off} of {len(part)} cells. Read the cells "
                "rather than the limits."
            )
    rate, wanted = healthy_rate(limits.rows), limits.about["fpr_wanted"]
    share = limits.healthy()
    if wanted < share["low"] or wanted > share["high"]:
        said.append(
            f"{rate:.0%} of the healthy twins are flagged, the wanted rate is {wanted:.0%}: the "
            "detection probabilities belong to that rate."
        )
    if not limits.about["certified"]:
        said.append(str(limits.about["calibration"]))
    planted = limits.rows[limits.rows["size"] > 0]
    if planted.duplicated(["subject", "size", "contrast"]).any():
        said.append(
            "Some subjects hold several lesions of a cell; the intervals of cells take them as "
            "independent, those of the limits are by subject."
        )
    refused = int((planted["gate"] == "refuse").sum())
    if refused:
        said.append(
            f"The quality gate would refuse {refused} of {len(planted)} planted scans; they were "
            "scored all the same."
        )
    return said


def _likely(limits: Limits, planted: pd.DataFrame) -> pd.Series:
    """Whether at least half of the cell of each lesion was found: no stroke of luck."""
    table = limits.table[limits.table["level"] == limits.levels[-1]]
    found = table.set_index(["contrast", "size"])["probability"]
    keys = list(zip(planted["contrast"], planted["size"], strict=True))
    return found.reindex(keys).ge(0.5).set_axis(planted.index)


def examples(
    detector: Detector, source: Source, largest: float, limits: Limits
) -> dict[str, list[Picture]]:
    """Return pictures of the faintest lesions found and the largest missed, planted again.

    Args:
        detector: that scored them.
        source: of the sites.
        largest: diameter in mm of the largest lesion.
        limits: whose rows to choose from.
    """
    import pandas as pd

    column = LEVELS[limits.levels[-1]]
    planted = limits.rows[limits.rows["size"] > 0]
    planted = planted.assign(faint=planted["contrast"].abs())
    hit = planted[column].astype(bool)
    if column == "flagged":  # a scan whose twin is flagged too shows nothing of its lesion
        twins = limits.rows[limits.rows["size"] == 0]
        hit &= ~planted["site"].isin(twins.loc[twins["flagged"].astype(bool), "site"])
    chosen = {
        FAINTEST: planted[hit & _likely(limits, planted)].sort_values(
            ["faint", "size"], kind="stable"
        ),
        LARGEST: planted[~planted[column].astype(bool)].sort_values(
            ["size", "faint"], ascending=False, kind="stable"
        ),
    }
    pictures: dict[str, list[Picture]] = {}
    for title, rows in chosen.items():
        rows = pd.DataFrame(rows).drop_duplicates("site").head(EXAMPLES)
        pictures[title] = []
        for _, row in rows.iterrows():
            try:
                site = source.site(int(row["site"]), largest)
                lesion = site.grow(float(row["size"]))(float(row["contrast"]))
                finding = detector.predict(lesion.scan, site.foreground, True, True)
            except NormscanError:
                continue  # it was there when it was scored; the table has it
            text = f"{row['size']:g} {limits.length}, contrast {row['contrast']:+g}"
            picture = finding.picture(mask=lesion.mask, label=1, title=text)
            caption = ", ".join(filter(None, (str(row["scan"]), picture.caption)))
            pictures[title].append(replace(picture, caption=caption))
    return pictures
