"""The anomaly map as a Parametric Map (PS3.3 A.75)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from normscan.dicom.codes import own, region
from normscan.dicom.identity import Identity
from normscan.dicom.sources import Planes, as_arguments, as_planes

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap
    from pydicom.dataset import Dataset

Stored = Literal["float32", "uint16"]


def parametric_map(
    identity: Identity, images: list[Dataset], stored: Stored = "float32"
) -> ParametricMap:
    """Build the map of a series that lies in space.

    Args:
        identity: of the finding, which has a map.
        images: the source images.
        stored: ``float32`` keeps each value. ``uint16`` rounds to 65,536 steps between the lowest
            and the highest, which more viewers can show.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian

    results = identity.results
    assert results.map is not None
    values = as_planes(np.asarray(results.map, np.float32))
    low, high = float(values.min()), float(values.max())
    slope, intercept = 1.0, 0.0
    bounds: tuple[Any, Any] = (low, high)
    shown = _window(values, results.pixel_threshold, high)
    if stored == "uint16":
        slope, intercept, bounds = (high - low) / 65535 or 1.0, low, (0, 65535)
        values = np.rint((values.astype(np.float64) - low) / slope).astype(np.uint16)
        shown = ((shown[0] - low) / slope, shown[1] / slope)
    centre, width = map(_short, shown)
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="ANOMALY",
        lut_explanation="Anomaly score",
        unit=codes.UCUM.NoUnits,
        value_range=bounds,
        slope=slope,
        intercept=intercept,
        quantity_definition=own("anomaly-score"),
    )
    made = hd.pm.ParametricMap(
        pixel_array=values,
        **as_arguments(images),
        **identity.of("map"),
        **identity.equipment,
        **Planes.of(results).arguments(),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        # Of the linear functions it alone may be narrower than 1.
        voi_lut_transformations=[hd.VOILUTTransformation(centre, width, None, "LINEAR_EXACT")],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="HEATMAP",
        content_description="Anomaly map: higher is more anomalous",
    )
    _add_anatomy(made, images[0])
    _ascend(made)
    return made


def _window(values: np.ndarray, threshold: float | None, high: float) -> tuple[float, float]:
    """Return centre and width: from the threshold, or the median where nothing is above, up."""
    low = threshold if threshold is not None and -np.inf < threshold < high else None
    low = float(np.median(values)) if low is None else low
    return (low + high) / 2, max(high - low, 1e-6)


def _short(value: float) -> float:
    return float(f"{value:.9g}")


def _add_anatomy(made: Dataset, image: Dataset) -> None:
    """Add the Frame Anatomy, which highdicom leaves out.

    Without it dciodvfy misses the laterality, and dcmqi, with which 3D Slicer reads maps, crashes.
    """
    from pydicom.dataset import Dataset

    side = str(image.get("ImageLaterality") or image.get("Laterality") or "")
    anatomy = Dataset()
    anatomy.FrameLaterality = side if side in ("R", "L", "B") else "U"
    anatomy.AnatomicRegionSequence = [region(str(image.get("BodyPartExamined") or ""))]
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]


def _ascend(made: Dataset) -> None:
    """Sort frames along the normal (row direction x column direction), against highdicom's order.

    Every reader that goes by the positions finds them in any order. dcmqi takes the first frame for
    the nearest, so that a map in the order of highdicom lay upside down in 3D Slicer.
    """
    name = "FloatPixelData" if "FloatPixelData" in made else "PixelData"
    groups = list(made.PerFrameFunctionalGroupsSequence)
    if len(groups) < 2:
        return
    both = made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    row, column = np.reshape([float(v) for v in both.ImageOrientationPatient], (2, 3))
    places = np.array([g.PlanePositionSequence[0].ImagePositionPatient for g in groups], float)
    order = np.argsort(places @ np.cross(row, column), kind="stable")
    size = len(getattr(made, name)) // len(groups)
    data = np.frombuffer(getattr(made, name), np.uint8)[: size * len(groups)]
    setattr(made, name, data.reshape(len(groups), size)[order].tobytes())
    made.PerFrameFunctionalGroupsSequence = [groups[k] for k in order]
    for number, group in enumerate(made.PerFrameFunctionalGroupsSequence, 1):
        group.FrameContentSequence[0].DimensionIndexValues = number
