"""What is refused and what is flagged, from the header and the wholeness of a scan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

AXES = {0: (), 2: ("down", "across"), 3: ("left-right", "posterior-anterior", "inferior-superior")}
# Beyond the range of the training scans by these factors: doubtful, and another kind of scan.
DOUBTFUL, OTHER = 1.25, 2.0
# Intensities are scaled before a method sees them, and MR has no unit: only a flag.
OTHER_RANGE = 10.0
DEGREES = 15.0
# Correlation of neighbouring voxels below which there is hardly anything but noise.
NOISE = 0.2
# Share of what an image shows in one half of it, below which that half is lost.
LOST = 0.02
# Flagged and refused beyond what training scans had by such shares of the axis or of the voxels.
# Lines of a picture repeat where it was enlarged, and are empty between two pictures in one.
SLACK = {
    3: {
        "empty_end": (0.1, 0.25),
        "empty_inside": (0.004, 0.04),
        "repeated": (0.004, 0.04),
        "saturated": (0.1, 0.5),
    },
    2: {
        "empty_end": (0.15, 0.4),
        "empty_inside": (0.1, 0.25),
        "repeated": (0.1, 0.25),
        "saturated": (0.15, 0.5),
    },
}
SENTENCES = {
    "empty_end": "{value:.0%} of its slices or lines at one end are empty",
    "empty_inside": "{value:.0%} of its slices or lines are empty though others around them aren't",
    "repeated": "{value:.0%} of its slices or lines repeat the one before",
    "saturated": "{value:.0%} of its voxels have the highest value",
}
# Flagged and refused where the rim of a picture is bright in so much more or less of it than in nine
# of ten training pictures; a few of the others may be of another modality.
RIM_SLACK, RIM_SHARE = (0.2, 0.35), 0.9

KINDS = ("dims", "channels", "modality", "contrast", "orientation")
RANGES = ("spacing", "extent", "aspect", "oblique")
VALUES = (*SENTENCES, "half", "structure", "low", "high")

Problem = tuple[bool, str]  # whether it is certain (refuse) or doubtful (flag), and why
Limits = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a scan.

    Attributes:
        status: ``ok``, ``flag`` (look at it) or ``refuse`` (not the kind of scan, or damaged).
        reasons: full sentences, those that refuse first; empty for ``ok``.
        measures: numbers behind them, as JSON knows them.
        seems: what a scan that isn't ``ok`` seems to be instead, such as ``a CT``; may be empty.
        neighbours: healthy training scans that look most alike, see ``Nearest.most_like``.
    """

    status: Literal["ok", "flag", "refuse"]
    reasons: tuple[str, ...] = ()
    measures: dict[str, Any] = field(default_factory=dict)
    seems: str = ""
    neighbours: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, problems: list[Problem], measures: dict[str, Any]) -> Verdict:
        """Sum up problems."""
        ordered = sorted(problems, key=lambda p: not p[0])
        status: Literal["ok", "flag", "refuse"] = "ok"
        if ordered:
            status = "refuse" if ordered[0][0] else "flag"
        return cls(status, tuple(text for _, text in ordered), measures)

    @property
    def passed(self) -> bool:
        """Whether the scan may be scored without ``force``."""
        return self.status != "refuse"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "status": self.status, "reasons": list(self.reasons), "seems": self.seems,
            "measures": self.measures, "neighbours": list(self.neighbours),
        }  # fmt: skip

    @property
    def sentences(self) -> tuple[str, ...]:
        """The reasons, and what it seems to be."""
        return (*self.reasons, f"It seems to be {self.seems}.") if self.seems else self.reasons


def widen(limits: dict[str, Any], header: Mapping[str, Any]) -> None:
    """Take the header of one more training scan (``measures.header``) into the limits.

    What was sometimes unknown (a picture without pixel spacing) is not checked later.
    """
    for name in KINDS:
        limits[name] = sorted({*limits.get(name, ()), header[name]})
    for name in RANGES:
        new = header[name]
        low, high = limits.get(name, (new, new))
        known = bool(new) and len(new) == len(low)
        limits[name] = [list(map(min, low, new)), list(map(max, high, new))] if known else [[], []]


def widen_values(limits: dict[str, Any], wholes: list[dict[str, Any]]) -> None:
    """Take the measures of the training scans' pixels (``measures.wholeness``) into the limits.

    A damaged scan or two among fifty or more training scans don't widen the ranges: the 2nd and
    98th percentile count.
    """
    limits["hounsfield"] = sorted({bool(w["hounsfield"]) for w in wholes})
    for name in VALUES:
        values = np.array([w[name] for w in wholes], dtype=float)
        ends = np.quantile(values, 0.02, method="lower"), np.quantile(values, 0.98, method="higher")
        limits[name] = [float(v) for v in ends]
    rims = [w["rim"] for w in wholes if "rim" in w]
    if rims:
        limits["rim"] = [float(v) for v in np.quantile(rims, [1 - RIM_SHARE, RIM_SHARE])]


def check_limits(limits: Limits) -> None:
    """Refuse stored limits that are not of the form that training scans give.

    Raises:
        ValueError: names the first one.
    """
    for name in (*KINDS, "hounsfield"):
        kind = int if name in ("dims", "channels", "hounsfield") else str
        if not isinstance(limits[name], list) or not all(isinstance(v, kind) for v in limits[name]):
            raise ValueError(f"the limits of {name} are {str(limits[name])[:80]}")
    ranges = {name: limits[name] for name in (*RANGES, *VALUES, "rim") if name in limits}
    for name, ends in ranges.items():
        both = np.array(ends, dtype=np.float64)
        if len(both) != 2 or both.ndim > 2 or not np.isfinite(both).all():
            raise ValueError(f"the limits of {name} are {str(ends)[:80]}")


def kind_problems(header: Mapping[str, Any], limits: Limits) -> Iterator[Problem]:
    """Yield another number of axes or channels, another modality."""
    if header["dims"] not in limits["dims"]:
        # A volume can be cut into slices; of a slice nobody can make a volume.
        fewer = header["dims"] < min(limits["dims"])
        text = f"The scan is {header['dims']}D, the training scans are {_list(limits['dims'])}D"
        if not fewer:
            text += (
                ": p-value and threshold are of single pictures and don't hold for all its slices"
            )
        yield fewer, f"{text}."
    if header["channels"] not in limits["channels"]:
        yield (
            True,
            (
                f"The scan has {_count(header['channels'], 'channel')}, the training scans have "
                f"{_list(limits['channels'])}."
            ),
        )
    for name in ("modality", "contrast"):
        if header[name] and "" not in limits[name] and header[name] not in limits[name]:
            yield (
                True,
                (
                    f"The file's {name} is {header[name]}, that of the training scans "
                    f"{_list(limits[name])}."
                ),
            )


def geometry_problems(header: Mapping[str, Any], limits: Limits) -> Iterator[Problem]:
    """Yield spacing, field of view, proportions and obliquity unlike those of training."""
    for name, title in (("spacing", "voxel spacing"), ("extent", "field of view")):
        lows, highs = limits[name]
        if len(lows) != len(header[name]):
            continue
        for axis, value, low, high in zip(AXES[len(lows)], header[name], lows, highs, strict=True):
            factor = max(value / high, low / value)
            # Finer voxels than in training lose nothing when they are averaged.
            severe = factor > OTHER and not (name == "spacing" and value < low)
            if factor > DOUBTFUL:
                yield (
                    severe,
                    (
                        f"The {title} {axis} is {value:.4g} mm, training scans had "
                        f"{_range(low, high)} mm."
                    ),
                )
    low, high, value = limits["aspect"][0][0], limits["aspect"][1][0], header["aspect"][0]
    if not header["extent"] and not low / DOUBTFUL <= value <= high * DOUBTFUL:
        yield (
            False,
            (
                f"The picture is {value:.2g} times as wide as high, training scans {_range(low, high)}."
            ),
        )
    most, value = limits["oblique"][1][0], header["oblique"][0]
    if value > most + DEGREES:
        yield (
            False,
            (
                f"The scan's axes are {value:.0f} degrees oblique to the patient's, those of training "
                f"scans at most {most:.0f}."
            ),
        )


def unit_problems(whole: Mapping[str, Any], limits: Limits) -> Iterator[Problem]:
    """Yield Hounsfield units where training scans had none, or the other way round."""
    if whole["hounsfield"] not in limits["hounsfield"]:
        yield (
            True,
            (
                "The values are Hounsfield units of a CT, those of the training scans are not."
                if whole["hounsfield"]
                else "The values are no Hounsfield units, those of the training scans are."
            ),
        )


def range_problems(whole: Mapping[str, Any], limits: Limits) -> Iterator[Problem]:
    """Yield a range of the values far from that of training."""
    low, high = limits["low"][0], limits["high"][1]
    factor = (whole["high"] - whole["low"]) / max(high - low, 1e-12)
    narrow = max(limits["high"][0] - limits["low"][1], 1e-12) / max(
        whole["high"] - whole["low"], 1e-12
    )
    if max(factor, narrow) > OTHER_RANGE:
        yield (
            False,
            (
                f"The values go from {whole['low']:.4g} to {whole['high']:.4g}, those of training scans "
                f"from {low:.4g} to {high:.4g}."
            ),
        )


def value_problems(whole: Mapping[str, Any], dims: int, limits: Limits) -> Iterator[Problem]:
    """Yield missing parts, copies, saturation, noise."""
    for name, (doubtful, certain) in SLACK[dims].items():
        value, most = whole[name], limits[name][1]
        if value > most + doubtful:
            text = SENTENCES[name].format(value=value)
            yield value > most + certain, f"{text}; training scans had at most {most:.0%}."
    structure, least = whole["structure"], limits["structure"][0]
    if structure < least - 0.3:
        yield (
            structure < NOISE,
            (
                f"Neighbouring voxels have a correlation of {structure:.2f}, so it is mostly noise; in "
                f"training scans it was at least {least:.2f}."
            ),
        )
    half, least = whole["half"], limits["half"][0]
    if half < 0.5 * least:
        yield (
            half < LOST and least > 0.1,
            (
                f"One half of the image holds {half:.0%} of what it shows; in training scans it was "
                f"at least {least:.0%}."
            ),
        )
    if "rim" in whole and "rim" in limits:
        yield from rim_problems(whole["rim"], limits["rim"])


def rim_problems(rim: float, limits: list[float]) -> Iterator[Problem]:
    """Yield a rim that is white in much more or less of it than in training: CT beside MR."""
    low, high = limits
    beyond = max(rim - high, low - rim)
    if beyond > RIM_SLACK[0]:
        yield (
            beyond > RIM_SLACK[1],
            (
                f"{rim:.0%} of the rim of what it shows is about as bright as its brightest, as bone "
                f"in a CT is; in most training scans it was {low:.0%} to {high:.0%}."
            ),
        )


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _list(values: list[Any]) -> str:
    return " or ".join(map(str, values))


def _range(low: float, high: float) -> str:
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
