"""Whether the values of the planes of a series are on one scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from normscan.io.dicom.values import Groups, fetch, number, text


class Scale(NamedTuple):
    """How stored numbers become values.

    Attributes:
        kind: ``line`` (slope and intercept), ``table`` (modality LUT) or ``none``.
        slope, intercept: of a line.
        unit: HU, US, BQML, ... or an empty string.
    """

    kind: str = "none"
    slope: float = 1.0
    intercept: float = 0.0
    unit: str = ""

    @property
    def changes(self) -> bool:
        """True if values differ from stored numbers."""
        return self.kind == "table" or (self.slope, self.intercept) != (1.0, 0.0)


def scale_of(data: Any, groups: Groups, frame: int) -> Scale:
    """Return the scale of a frame."""
    group = "PixelValueTransformationSequence"
    unit = text(data, "Units") or str(groups.get(frame, group, "RescaleType") or "").strip()
    if fetch(data, "ModalityLUTSequence"):
        return Scale("table", unit=unit[:16])
    line = [number(groups.get(frame, group, k)) for k in ("RescaleSlope", "RescaleIntercept")]
    if line == [None, None]:
        return Scale(unit=unit[:16])
    slope, intercept = (
        v if v is not None else usual for v, usual in zip(line, (1, 0), strict=True)
    )
    return Scale("line", float(slope), float(intercept), unit[:16])


def mixed_scales(
    scales: Sequence[Scale], names: Sequence[str], modality: str
) -> tuple[str, list[str]]:
    """Compare the scales of the planes of a volume.

    Args:
        scales: one a plane.
        names: of their files, for messages.
        modality: CT, MR, ...

    Returns:
        Why the planes can't be joined, or an empty string; what is to be said of them.
    """
    count = len(scales)
    for kind, what in (
        ("none", "no Rescale Slope and Intercept: they hold stored numbers"),
        ("table", "a modality table"),
    ):
        own = [n for n, s in zip(names, scales, strict=True) if s.kind == kind]
        others = [s for s in scales if s.kind != kind]
        if own and others and (kind == "table" or any(s.changes for s in others)):
            return (
                f"{len(own)} of {count} images (the first: {own[0]}) have {what}, while the others "
                "have values after Rescale Slope and Intercept, so they are on different scales",
                [],
            )
    units = Counter(s.unit for s in scales)
    if len(set(units) - {""}) > 1:
        found = ", ".join(f"{unit or 'none'} ({n})" for unit, n in units.most_common(4))
        return f"its images are in different units (rescale type or units): {found}", []
    notes = []
    if len(units) > 1:
        notes.append(f"{units['']} of {count} images don't say in which unit they are.")
    lines = {(s.slope, s.intercept) for s in scales}
    if modality == "CT" and len(lines) > 1:
        notes.append(
            f"Rescale Slope and Intercept differ from image to image ({len(lines)} pairs); each "
            "image was scaled by its own."
        )
    return "", notes
