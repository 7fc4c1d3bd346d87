"""What counts as inside a mask: label maps, drawings and probability maps told apart by content."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from normscan.errors import ScanError

LABELS, DRAWING, PROBABILITIES = "label map", "drawing", "probability map"

LARGEST_LABEL = 31
MOST_LABELS = 2**24  # whole numbers that float32 holds exactly
"""Whole numbers up to here are labels without a second look (1 = oedema, 2 = core, ...); above, the
greys of a drawing with smooth borders are told from labels by their neighbours."""

WIDEST_LESION = 0.5
"""A lesion mask that covers more of its picture is noted: its background may not be 0."""

FAINT = 32  # what JPEG leaves in a black background is darker
_FEW = 2  # greys between background and brightest that are no smooth border
NEARLY = 0.01  # how far from a whole number rounding and rescaling leave a label


@dataclass(frozen=True)
class MaskRule:
    """How a mask is cut.

    Attributes:
        kind: ``label map`` (every value above 0.5), ``drawing`` (greys with smooth or lossy borders,
            above half of the faintest pen) or ``probability map`` (above the threshold).
        cut: a value above it is inside.
    """

    kind: str
    cut: float

    def inside(self, values: np.ndarray) -> np.ndarray:
        """Return booleans."""
        return np.asarray(values > self.cut)


@dataclass
class MaskReport:
    """What the masks of a cohort were taken for, to be said once.

    Attributes:
        kinds: number of masks by kind.
        wide: name and share of the lesion masks that cover most of their picture.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    wide: list[tuple[str, float]] = field(default_factory=list)

    def add(self, path: Path, rule: MaskRule, inside: np.ndarray) -> None:
        """Count a mask."""
        self.kinds[rule.kind] += 1
        share = float(np.mean(inside))
        if share > WIDEST_LESION:
            self.wide.append((path.name, share))

    def take(self, other: MaskReport) -> None:
        """Take in what another one counted."""
        self.kinds += other.kinds
        self.wide += other.wide

    def notes(self, threshold: float = 0.5) -> list[str]:
        """Return a sentence on the kinds, and one on implausible masks where there are any."""
        if not self.kinds:
            return []
        says = {
            LABELS: "with every value above 0 inside",
            DRAWING: "in greys, cut at half of the faintest grey",
            PROBABILITIES: f"cut at {threshold:g}",
        }
        found = ", ".join(
            f"{self.kinds[kind]} {kind}{'s' * (self.kinds[kind] != 1)} {text}"
            for kind, text in says.items()
            if self.kinds[kind]
        )
        notes = [f"Lesion masks: {found}."]
        if self.wide:
            name, share = self.wide[0]
            notes.append(
                f"{len(self.wide)} lesion masks cover more than {WIDEST_LESION:.0%} of their picture "
                f"(the first: {name}, {share:.0%}). Check that 0 is their background, not white."
            )
        return notes


def mask_rule(
    values: np.ndarray, path: Path, threshold: float = 0.5, dtype: str = "", lossy: bool = False
) -> MaskRule:
    """Decide what a mask is and where it is cut.

    Args:
        values: of the whole mask, a slice alone doesn't tell; 0 is the background.
        path: to name it in messages.
        threshold: of a probability map, 0 to 1.
        dtype: of the file, which gives the full scale of a probability map in whole numbers.
        lossy: it was a JPEG, whose compression leaves traces in the background.

    Raises:
        ScanError: negative or immense values, values that are neither labels nor probabilities.
    """
    low, high = float(values.min()), float(values.max())
    if low < -NEARLY * max(1.0, high):
        raise ScanError(f"{path}: a mask with negative values. Save 0 outside and 1 inside.")
    if high > MOST_LABELS:
        raise ScanError(
            f"{path}: is no mask: values up to {high:.4g}, of which the largest that can be told apart "
            f"is {MOST_LABELS}. Save 0 outside and 1 inside."
        )
    if high < 0.5:  # nothing, or a probability map of nothing
        return MaskRule(PROBABILITIES if high > NEARLY else LABELS, min(threshold, 0.5))
    if lossy:
        return MaskRule(DRAWING, _lossy_cut(values))
    whole = np.abs(values - np.round(values)) <= NEARLY + 1e-5 * high
    if not whole.all():
        if high <= 1.1:
            return MaskRule(PROBABILITIES, threshold)
        touched = values > NEARLY
        if float(whole[touched].mean()) < 0.5:
            raise ScanError(
                f"{path}: is no mask: its values up to {high:.4g} are neither whole numbers (labels) "
                "nor probabilities from 0 to 1. Save labels as whole numbers, or probabilities as "
                "0 to 1."
            )
    if high <= LARGEST_LABEL + 0.5 or low > high - 0.5:
        return MaskRule(LABELS, 0.5)
    return _rule_of_greys(np.round(values).astype(np.int64), threshold, dtype)


def _rule_of_greys(values: np.ndarray, threshold: float, dtype: str) -> MaskRule:
    """Tell labels, drawings and probabilities apart where whole numbers go beyond usual labels.

    Labels lie in areas of one value, or alone on the background. The greys along the border of a
    smoothed drawing, and those of a probability map, lie between other greys.
    """
    ground = int(values.min()) if int(values.min()) * 2 < int(values.max()) else 0
    values = _cropped(values - ground)
    high = int(values.max())
    inner = (values > 0) & (values < high)
    if not inner.any():
        cut = 0.5 if ground == 0 else ground + high / 2
        return MaskRule(LABELS if ground == 0 else DRAWING, cut)
    mixed, flat = _mixed(values), _flat(values)
    levels = np.bincount(values.ravel(), minlength=high + 1)
    gradient = _gradient(values, mixed, inner)
    few = np.count_nonzero(levels[1:high]) <= _FEW
    if few or (float((mixed & ~flat)[inner].mean()) <= 0.5 and not gradient):
        return MaskRule(LABELS, ground + 0.5)
    in_areas = np.bincount(values[flat], minlength=high + 1)
    pens = np.flatnonzero((in_areas * 2 > levels) & (levels > 0))
    pens = pens[pens > 0]
    if not gradient and len(pens) and levels[pens].sum() * 4 > int((values > 0).sum()):
        return MaskRule(DRAWING, ground + float(pens[0]) / 2)
    top = 255 if high + ground <= 255 or dtype == "uint8" else 65535
    return MaskRule(PROBABILITIES, threshold * max(top, high + ground if top == 65535 else 0))


def _cropped(values: np.ndarray) -> np.ndarray:
    """Leave the background around what is not 0 away."""
    slices = []
    for axis in range(values.ndim):
        others = tuple(a for a in range(values.ndim) if a != axis)
        there = np.flatnonzero((values != 0).any(axis=others))
        slices.append(slice(int(there[0]), int(there[-1]) + 1))
    return values[tuple(slices)]


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return where a neighbour has another value and neither is background."""
    found = np.zeros(values.shape, bool)
    for axis in range(values.ndim):
        one, two = _steps(values, axis)
        differs = (one != two) & (one > 0) & (two > 0)
        for part in _steps(found, axis):
            part |= differs
    return found


def _flat(values: np.ndarray) -> np.ndarray:
    """Return what belongs to a square of 2 x 2 equal values above 0."""
    found = np.zeros(values.shape, bool)
    for first, second in combinations(range(values.ndim), 2):
        corners = [c for part in _steps(values, first) for c in _steps(part, second)]
        equal = np.logical_and.reduce([corners[0] == c for c in corners[1:]]) & (corners[0] > 0)
        for part in _steps(found, first):
            for corner in _steps(part, second):
                corner |= equal
    return found


def _gradient(values: np.ndarray, mixed: np.ndarray, inner: np.ndarray) -> bool:
    """Tell a slowly changing map in whole numbers: most values have neighbours a step away."""
    if float(mixed[inner].mean()) < 0.6:
        return False
    jumps = []
    for axis in range(values.ndim):
        one, two = _steps(values, axis)
        differs = (one != two) & (one > 0) & (two > 0)
        jumps.append(np.abs(one[differs] - two[differs]))
    return float(np.quantile(np.concatenate(jumps), 0.9)) <= max(3, 0.09 * int(values.max()))


def _steps(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an array without its last and without its first place along an axis, as views."""
    before = (slice(None),) * axis
    return values[(*before, slice(None, -1))], values[(*before, slice(1, None))]


def _lossy_cut(values: np.ndarray) -> float:
    """Return half of the faintest grey that fills an area; along borders a JPEG rings."""
    from scipy.ndimage import maximum_filter, minimum_filter

    size = (1,) * (values.ndim - 2) + (3, 3)
    even = maximum_filter(values, size) - minimum_filter(values, size) <= 12
    pens = np.sort(values[even & (values > FAINT)])
    return float(pens[min(8, len(pens) - 1)]) / 2 if len(pens) else 127.0


def indexed(indices: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return the numbers of a palette mask with its background as 0.

    Index 0 is the background, whatever its colour, except where another one is seen to be: black
    around everything while index 0 isn't black, or paper white around everything while index 0 is a
    colour or isn't there.

    Args:
        indices: (H, W) numbers of colours.
        colours: (n, 3) of 0..255.
    """
    colours = np.concatenate([colours, np.zeros((1, 3), colours.dtype)])
    used = np.minimum(indices.astype(np.int64), len(colours) - 1)
    black, white = colours.max(axis=1) <= 10, colours.min(axis=1) >= 245
    if (colours[:-1] == np.arange(len(colours) - 1)[:, None]).all():
        return indices  # a ramp of greys: they are the values
    around, share = _border(used)
    there = bool((used == 0).any())
    paper = bool(white[around]) and not white[0]
    if around == 0 or share < 0.5 or (there and (black[0] or not (black[around] or paper))):
        return indices
    if not (black[around] or white[around]):
        return indices
    # Index 0 becomes a label of its own, one above all others.
    numbers = np.where(used == 0, int(used.max()) + 1, used)
    return np.asarray(np.where(used == around, 0, numbers))


def upright(stored: np.ndarray, top: int) -> np.ndarray:
    """Return the numbers of a white-is-zero mask with its background as 0.

    ImageJ stores a mask as 255 on 0 and shows it black on white; others store what is shown. What
    lies around tells them apart.

    Args:
        stored: (H, W) or (pages, H, W) as they are in the file.
        top: the largest number that can be.
    """
    numbers = stored.astype(np.int64)
    around, share = _border(numbers)
    return top - numbers if around == top and share >= 0.5 else numbers


def coloured(data: np.ndarray) -> np.ndarray:
    """Return the brightest channel of a colour mask (3, H, W); on white paper the darkest, inverted."""
    white = 255.0 if float(data.max()) <= 255 else 65535.0
    edge = [data[:, 0], data[:, -1], data[:, :, 0], data[:, :, -1]]
    paper = np.concatenate(edge, axis=1).min(axis=0) >= 0.96 * white
    if float(paper.mean()) >= 0.5:
        return np.asarray(white - data.min(axis=0))
    return np.asarray(data.max(axis=0))


def _border(values: np.ndarray) -> tuple[int, float]:
    """Return the value that most of the edge of a picture has, and its share."""
    edge = np.concatenate([values[..., 0, :], values[..., -1, :]], axis=-1).ravel()
    sides = np.concatenate([values[..., 0], values[..., -1]], axis=-1).ravel()
    found, counts = np.unique(np.concatenate([edge, sides]), return_counts=True)
    most = int(counts.argmax())
    return int(found[most]), float(counts[most] / counts.sum())
