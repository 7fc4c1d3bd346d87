"""Steps for computed tomography: Hounsfield windows, table removal, the brain inside the skull.

They need Hounsfield units (air -1000, water 0). A scan without any air can't be told from stored
values without their rescale intercept, or from Cormack units, so it is refused unless ``trust`` is
given. An 8-bit picture was windowed before it was saved: the steps leave it as it is and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from normscan.errors import ArgumentError, ScanError, nearest
from normscan.preprocess.foreground import bounding_box
from normscan.preprocess.steps import Working, step

# Centre and width in HU: Radiopaedia, "Windowing (CT)" (W80 L40; W130-300 L50-100; W40 L40; temporal
# bone W2800 L600; chest W1500 L-600; abdomen W400 L50). Subdural is the middle of its range, 80/200.
WINDOWS: dict[str, tuple[float, float]] = {
    "brain": (40, 80),
    "subdural": (80, 200),
    "stroke": (40, 40),
    "bone": (600, 2800),
    "lung": (-600, 1500),
    "soft": (50, 400),
}
AIR = -1024.0
NO_AIR = -200.0
PICTURE = "an 8-bit picture, windowed before: steps in Hounsfield units leave it as it is"


@step("window")
def window(
    working: Working,
    name: str | Sequence[str] = "brain",
    center: float | None = None,
    width: float | None = None,
    trust: bool = False,
) -> Working:
    """Map a Hounsfield window to 0..1; several windows give several channels.

    ``(HU - center) / width + 0.5``, cut at 0 and 1: LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2. An
    8-bit picture, windowed before, is made grey and divided by 255.

    Args:
        working: a CT of one channel in HU.
        name: ``brain`` (40/80), ``subdural`` (80/200), ``stroke`` (40/40), ``bone`` (600/2800),
            ``lung`` (-600/1500), ``soft`` (50/400), or a list of them.
        center: HU, together with ``width`` instead of a name.
        width: HU.
        trust: take the values as HU even where no air shows.

    Raises:
        ArgumentError: an unknown name, or a width that isn't positive.
        ScanError: values that can't be Hounsfield units.
    """
    names, windows = _windows(name, center, width)
    working, hu = _hounsfield(working, "window", trust)
    if hu is None:
        if len(windows) > 1:
            raise ScanError(
                f"{working.scan.name}: an 8-bit picture shows one window and can't give "
                f"{len(windows)}. Take the CT in Hounsfield units, or name one window."
            )
        data = working.scan.data.mean(axis=0, keepdims=True) / 255
    else:
        data = np.stack([np.clip((hu - c) / w + 0.5, 0, 1) for c, w in windows])
    return replace(working, scan=working.scan.with_data(data.astype(np.float32), names))


def _windows(
    name: str | Sequence[str], center: float | None, width: float | None
) -> tuple[tuple[str, ...], list[tuple[float, float]]]:
    """Return channel names, and centre and width of each."""
    if center is not None or width is not None:
        if center is None or width is None or not width > 0:
            raise ArgumentError(
                f"window: center={center} and width={width} belong together, and the width must be "
                "positive (HU)."
            )
        return ("window",), [(center, width)]
    names = (name,) if isinstance(name, str) else tuple(name)
    for one in names:
        if one not in WINDOWS:
            raise ArgumentError(
                f"window: there is no window '{one}'.{nearest(str(one), WINDOWS)} "
                f"Known: {', '.join(WINDOWS)}; or give center and width."
            )
    if not names:
        raise ArgumentError(f"window: name at least one of {', '.join(WINDOWS)}.")
    return names, [WINDOWS[one] for one in names]


def _hounsfield(working: Working, name: str, trust: bool) -> tuple[Working, np.ndarray | None]:
    """Return (*shape) HU with padding raised to air, or None for an 8-bit picture."""
    scan = working.scan
    low, high = float(scan.data.min()), float(scan.data.max())
    if scan.dtype == "uint8" and low >= 0 and high <= 255 and not trust:
        if PICTURE not in working.notes:
            working = working.noted(PICTURE)
        return working, None
    if len(scan.data) != 1:
        raise ScanError(
            f"{scan.name}: {name} works on a CT of one channel, not {len(scan.data)}. Give one "
            "series, and one window step for all windows."
        )
    if low > NO_AIR and not trust:
        raise ScanError(
            f"{scan.name}: {name} needs Hounsfield units, where air is about -1000, but the values "
            f"run from {low:g} to {high:g}. Stored values need their rescale slope and intercept, "
            "Cormack units their inverse, and a step in HU must stand before 'window'. If it is HU "
            f"with the air cut away, say so: {{{name}: {{trust: true}}}}."
        )
    if low < AIR:
        working = working.noted(f"{name}: padding of {low:g} taken as air")
    return working, np.maximum(scan.data[0], AIR)


@step("remove_table")
def remove_table(
    working: Working, threshold: float = -400.0, radius: float = 3.0, trust: bool = False
) -> Working:
    """Set everything but the patient to air: table, head holder, cushions, tubes.

    The patient is the largest part above ``threshold`` after an opening, which lets go of shells
    and tubes thinner than twice ``radius``; its holes (sinuses, lungs) are filled in every axial
    slice. Works at about 1 mm. Sets the foreground to the patient.

    Args:
        working: head or body CT in HU, 2D or 3D.
        threshold: HU, not below -500; foam and clothes lie below it.
        radius: mm, of the opening.
        trust: see ``window``.

    Returns:
        HU, at least -1024, exactly that outside the patient.
    """
    working, hu = _hounsfield(working, "remove_table", trust)
    if hu is None:
        return working
    grid = _Coarse(working, hu)
    patient = grid.fine(_patient(grid, threshold, radius))
    if not patient.any():
        return working.noted(f"remove_table: nothing above {threshold:g} HU, left as it was")
    data = np.where(patient, hu, AIR)[None]
    return replace(working.with_image(data), foreground=patient)


@step("brain_ct_mask")
def brain_ct_mask(
    working: Working, bone: float = 100.0, strip: bool = False, trust: bool = False
) -> Working:
    """Find the brain inside the skull and make it the foreground.

    Soft tissue of 0 to 100 HU as in Muschelli et al., NeuroImage 2015 (doi
    10.1016/j.neuroimage.2015.03.074), whose BET is replaced: an opening at 2.5 mm, 4 or 6 mm where
    that is not enough, parts brain from scalp; the part that lies most within the closed bone of the
    axial slices is kept and its holes (calcification, air, dense blood) are filled. Works at about
    1 mm, without training. Good for crop and scaling; at the skull base it is rough.

    Args:
        working: head CT in HU, 3D, or a slice that shows a closed skull.
        bone: HU from which on it is bone.
        strip: set everything outside to -1024 HU.
        trust: see ``window``.
    """
    working, hu = _hounsfield(working, "brain_ct_mask", trust)
    if hu is None:
        return working
    grid = _Coarse(working, hu)
    found = _brain(grid, bone)
    if not found.any():
        return working.noted("brain_ct_mask: no brain within bone was found, left as it was")
    brain = grid.fine(found)
    measure = float(brain.sum()) * working.scan.voxel_volume
    facts = {"brain_ml": measure / 1000} if hu.ndim == 3 else {"brain_mm2": measure}
    if facts.get("brain_ml", 0) > 2000:
        working = working.noted(
            f"brain_ct_mask: {facts['brain_ml']:.0f} ml is more than a skull holds, so the mask runs "
            "out at the base"
        )
    if strip:
        working = working.with_image(np.where(brain, hu, AIR)[None])
    return replace(working, foreground=brain).noted(**facts)


class _Coarse:
    """HU averaged to about 1 mm, and the way of a mask back to the scan's own grid."""

    def __init__(self, working: Working, hu: np.ndarray, target: float = 1.0) -> None:
        spacing = working.scan.spacing
        self.shape = hu.shape
        self.factors = tuple(max(1, round(target / s)) for s in spacing)
        self.spacing = tuple(s * f for s, f in zip(spacing, self.factors, strict=True))
        pads = [(0, -n % f) for n, f in zip(hu.shape, self.factors, strict=True)]
        blocks = [
            part
            for n, f, (_, pad) in zip(hu.shape, self.factors, pads, strict=True)
            for part in ((n + pad) // f, f)
        ]
        padded = np.pad(hu, pads, mode="edge").reshape(blocks)
        whole = padded.mean(axis=tuple(range(1, 2 * hu.ndim, 2)))
        # Most of a scan is air. One voxel of it is kept around, for the erosions to begin at.
        box = bounding_box(whole > 0.5 * AIR)
        self.box = tuple(slice(max(0, a - 1), b + 1) for a, b in box)
        self.whole, self.hu = whole.shape, whole[self.box]
        # The axis of the volume that runs most along the body.
        self.axial = int(np.abs(working.scan.affine[2, :3]).argmax()) if hu.ndim == 3 else None

    def fine(self, mask: np.ndarray) -> np.ndarray:
        whole = np.zeros(self.whole, bool)
        whole[self.box] = mask
        mask = whole
        for axis, factor in enumerate(self.factors):
            mask = np.repeat(mask, factor, axis)
        return mask[tuple(slice(0, n) for n in self.shape)]

    def near(self, mask: np.ndarray, mm: float) -> np.ndarray:
        """Dilate."""
        from scipy.ndimage import distance_transform_edt

        if not mask.any():
            return mask
        return np.asarray(distance_transform_edt(~mask, sampling=self.spacing) <= mm)

    def core(self, mask: np.ndarray, mm: float) -> np.ndarray:
        """Erode; what lies outside the scan takes nothing away."""
        return ~self.near(~mask, mm)

    def filled(self, mask: np.ndarray) -> np.ndarray:
        """Fill the holes of every axial slice."""
        from scipy.ndimage import binary_fill_holes

        if self.axial is None:
            return np.asarray(binary_fill_holes(mask))
        slices = np.moveaxis(mask, self.axial, 0)
        return np.moveaxis(np.stack([binary_fill_holes(s) for s in slices]), 0, self.axial)


def _largest(mask: np.ndarray, within: np.ndarray | None = None) -> np.ndarray:
    """Return the component with the most voxels, counted within a region."""
    from scipy.ndimage import label

    labels, n = label(mask)
    if n == 0:
        return mask
    counted = labels if within is None else labels[within]
    sizes = np.bincount(counted.ravel(), minlength=n + 1)
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax()) if sizes.any() else np.zeros_like(mask)


def _patient(grid: _Coarse, threshold: float, radius: float) -> np.ndarray:
    solid = grid.hu > threshold
    core = _largest(grid.core(solid, radius))
    # One voxel more than the erosion took, so that ears and nose come back.
    return grid.filled(solid & grid.near(core, radius + max(grid.spacing[:2])))


def _brain(grid: _Coarse, bone: float) -> np.ndarray:
    from scipy.ndimage import binary_fill_holes, gaussian_filter

    sigma = [0.0 if axis == grid.axial else 1.0 for axis in range(grid.hu.ndim)]
    smooth = gaussian_filter(np.clip(grid.hu, AIR, 200), sigma)
    skull = grid.hu > bone
    closed = grid.core(grid.near(skull, 4.0), 4.0)
    inside = grid.filled(closed) & ~closed
    tissue = (smooth > 0) & (smooth < 100) & ~skull
    best, share, mm = np.zeros_like(skull), 0.0, 0.0
    for radius in (2.5, 4.0, 6.0):
        part = _largest(grid.core(tissue, radius), inside)
        enclosed = float(inside[part].mean()) if part.any() else 0.0
        if enclosed > share + 0.05:
            best, share, mm = part, enclosed, radius
        if share > 0.9:
            break
    brain = tissue & grid.near(best, mm + 1.0)
    brain = grid.core(grid.near(brain, 3.0), 3.0)
    brain = grid.filled(binary_fill_holes(brain))
    # Where bone closes around most of a slice's brain, what lies outside it is eye or scalp.
    axes = None if grid.axial is None else tuple(a for a in range(3) if a != grid.axial)
    within = brain & grid.filled(closed)
    ring = within.sum(axes, keepdims=True) > 0.7 * brain.sum(axes, keepdims=True)
    return np.where(ring, within, brain)
