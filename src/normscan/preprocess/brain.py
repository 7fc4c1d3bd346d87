"""Brain extraction: by MNI152 and the scan's own edges, or by HD-BET, SynthStrip or deepbet.

The atlas method registers MNI152 to the scan, carries its brain mask over, and moves the border to
where the scan's own intensities change. It needs no weights and no contrast in particular.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from normscan.errors import ArgumentError, ScanError
from normscan.preprocess.align import align
from normscan.preprocess.brain_tools import TOOLS, run_tool
from normscan.preprocess.foreground import bounding_box
from normscan.preprocess.registration import doubts, volume_only
from normscan.preprocess.steps import Working, sample, step
from normscan.preprocess.template import mni152

LARGEST_BRAIN = 2100.0
"""ml; what stands alone in a constant background and is larger is a head, not a brain."""

MARGIN = 1.0
"""mm by which the refined mask of the atlas is widened at last."""


def stripped_brain(data: np.ndarray, voxel: float) -> np.ndarray | None:
    """Return the mask of a brain whose surroundings were blanked before, or None.

    Args:
        data: (C, X, Y, Z).
        voxel: mm3.
    """
    from scipy import ndimage

    low = data[:, :1, :1, :1]
    mask = np.asarray((data != low).any(axis=0))
    faces = [np.take(mask, i, axis) for axis in range(3) for i in (0, -1)]
    # A brain may touch the border of its field of view, but not much of it.
    if np.concatenate([face.ravel() for face in faces]).mean() > 0.1 or mask.mean() > 0.8:
        return None
    mask = _largest(ndimage.binary_fill_holes(mask))
    return mask if 0 < mask.sum() * voxel / 1000 <= LARGEST_BRAIN else None


def _largest(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def signed_distance(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Return the distance in mm to the border of a mask, positive inside."""
    from scipy.ndimage import distance_transform_edt

    inside = distance_transform_edt(mask, sampling=spacing)
    outside = distance_transform_edt(~mask, sampling=spacing)
    return np.asarray(inside - outside, np.float32)


def refine(
    image: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...], reach: float = 9.0
) -> np.ndarray:
    """Move the border of a brain mask to where the intensities say it is.

    In a band around the mask each voxel is weighed: how far inside the mask it lies, and how often
    its intensity, as smoothed a little, occurs deep in the brain rather than in what surrounds it.
    Thin bridges to the skull are then cut and sulci closed.

    Args:
        image: (X, Y, Z), any contrast.
        mask: (X, Y, Z) bool, roughly the brain.
        spacing: mm.
        reach: mm by which the border may move.
    """
    from scipy import ndimage

    distance = signed_distance(mask, spacing)
    sigma = 1.0 / np.asarray(spacing)
    smooth = ndimage.gaussian_filter(image.astype(np.float32, copy=False), sigma, truncate=2.0)
    near = distance > -reach - 4
    low, high = np.percentile(smooth[near], [0.5, 99.5])
    bins = np.clip((smooth - low) / max(high - low, 1e-12) * 63, 0, 63).astype(np.int64)
    deep = distance > min(5.0, float(distance.max()) / 2)
    around = (distance < -2) & near
    counts = [np.bincount(bins[part], minlength=64) for part in (deep, around)]
    inside, outside = (ndimage.gaussian_filter1d(c / max(c.sum(), 1), 1.0) + 1e-3 for c in counts)
    evidence = np.log(inside / outside)[bins]
    # A bright lesion at the surface looks like scalp; at most 5 mm may be lost to such a mistake.
    brain = (distance / 3.0 + np.clip(evidence, -1.7, 2.0) > 0) & (distance > -reach)
    brain |= distance > reach
    # Opening and closing by balls in mm, through distances: voxels may be long.
    core = _largest(ndimage.distance_transform_edt(brain, sampling=spacing) > 3.0)
    brain &= ndimage.distance_transform_edt(~core, sampling=spacing) <= 4.5
    closed = ndimage.distance_transform_edt(~brain, sampling=spacing) <= 5.0
    brain |= ndimage.distance_transform_edt(closed, sampling=spacing) > 5.0
    brain = _largest(ndimage.binary_fill_holes(brain))
    if not brain.any():
        return brain
    # Where fluid and cortex meet the border runs through the cortex: half of what was cut comes back.
    return np.asarray(ndimage.distance_transform_edt(~brain, sampling=spacing) <= MARGIN)


def atlas_brain(working: Working, channel: int = 0) -> tuple[np.ndarray, Working]:
    """Return the brain mask of a head by the atlas, and the scan with remarks on it."""
    scan = working.scan
    image = scan.data[channel]
    template = mni152()
    found, _ = align(image, scan.affine, template)
    remarks = doubts("brain_extraction", scan.name, found)
    way = np.linalg.inv(template.affine) @ found.matrix @ scan.affine
    mask = sample(template.brain[None].astype(np.float32), way, scan.shape)[0] > 0.5
    if not mask.any():
        raise ScanError(f"{scan.name}: brain_extraction found no brain in the field of view.")
    # Far from the brain there is nothing to decide.
    margins = [int(np.ceil(20 / s)) for s in scan.spacing]
    box = tuple(
        slice(max(low - m, 0), high + m)
        for (low, high), m in zip(bounding_box(mask), margins, strict=True)
    )
    brain = np.zeros(scan.shape, bool)
    brain[box] = refine(image[box], mask[box], scan.spacing)
    if not brain.any():
        brain, remarks = mask, [*remarks, "brain_extraction: the atlas mask couldn't be refined."]
    return brain, working.noted(*remarks, brain_atlas_information=found.mutual_information)


@step("brain_extraction")
def brain_extraction(
    working: Working,
    method: Literal["atlas", "hd-bet", "synthstrip", "deepbet"] = "atlas",
    strip: bool = True,
    channel: int = 0,
    device: str = "cpu",
) -> Working:
    """Find the brain; it becomes the foreground, and the rest is blanked.

    A brain that was extracted before (something of at most 2.1 litres in a constant surrounding)
    keeps its mask, whatever the method.

    Args:
        working: a volume with the brain in view.
        method: ``atlas`` always works; ``hd-bet`` (Isensee et al., Human Brain Mapping 2019),
            ``synthstrip`` (Hoopes et al., NeuroImage 2022) and ``deepbet`` (Fisch et al., Computers
            in Biology and Medicine 2024; T1 of healthy adults) call these programs where the user
            has installed them.
        strip: set what is outside to 0, or to the minimum of a channel with negative values.
        channel: the channel to look at; all channels share its mask.
        device: of HD-BET and deepbet: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ScanError: a 2D scan, or no brain is found.
        ArgumentError: unknown method or channel, or a program that isn't installed or fails.
    """
    scan = working.scan
    volume_only("brain_extraction", scan, channel)
    if method not in ("atlas", *TOOLS):
        raise ArgumentError(
            f"brain_extraction has no method '{method}': atlas, {', '.join(TOOLS)}."
        )
    brain = stripped_brain(scan.data, scan.voxel_volume)
    if brain is not None:
        working = working.noted(brain_was_extracted=1.0)
    elif method == "atlas":
        brain, working = atlas_brain(working, channel)
    else:
        brain = run_tool(method, scan, channel, device)
    millilitres = float(brain.sum()) * scan.voxel_volume / 1000
    return with_brain(working, brain, strip).noted(brain_ml=millilitres)


def with_brain(working: Working, brain: np.ndarray, strip: bool) -> Working:
    """Set the foreground and blank the rest."""
    from dataclasses import replace

    if strip:
        data = working.scan.data
        low = np.minimum(data.min(axis=(1, 2, 3), keepdims=True), 0)
        working = working.with_image(np.where(brain, data, low))
    return replace(working, foreground=brain)
