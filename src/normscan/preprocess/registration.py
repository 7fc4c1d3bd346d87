"""The step that brings a brain to a template: one affine way, one interpolation."""

from __future__ import annotations

import numpy as np

from normscan.errors import ArgumentError, ScanError
from normscan.preprocess.align import DOF, Alignment, align, antialias
from normscan.preprocess.steps import Working, sample, step
from normscan.preprocess.template import find_space
from normscan.scan import Scan

NO_BRAIN, DOUBTFUL = 0.1, 0.2
"""Mutual information in nats. Noise reaches 0.004, boxes 0.07, a ball 0.19, real scans 0.22 to 0.72
(`benchmarks/results/brain_preprocessing.md`)."""
VOLUME = (0.75, 2.0)
LENGTHS = (0.75, 1.45)
ROTATION = 35.0
OVERLAP = 0.9


def volume_only(name: str, scan: Scan, channel: int) -> None:
    """Refuse 2D scans and unknown channels."""
    if scan.dims != 3:
        raise ScanError(f"{scan.name}: {name} needs a volume, not a 2D image. Leave this step out.")
    if not 0 <= channel < len(scan.data):
        raise ArgumentError(
            f"{name}: there is no channel {channel}; {scan.name} has {len(scan.data)} (from 0)."
        )


def doubts(name: str, scan: str, found: Alignment) -> list[str]:
    """Say what looks wrong with an alignment.

    Raises:
        ScanError: the scan shares next to nothing with the template.
    """
    if found.mutual_information < NO_BRAIN:
        raise ScanError(
            f"{scan}: {name} finds no brain in it (mutual information with the template "
            f"{found.mutual_information:.3f}, at least {NO_BRAIN:g} wanted). Is it a head scan, and "
            "are the directions of its axes right?"
        )
    said = []
    if found.mutual_information < DOUBTFUL:
        said.append(f"mutual information {found.mutual_information:.2f}, below {DOUBTFUL:g}")
    if not VOLUME[0] <= found.volume <= VOLUME[1]:
        said.append(f"volume changed by {found.volume:.2f}, outside {VOLUME[0]:g} to {VOLUME[1]:g}")
    if not LENGTHS[0] <= found.lengths[0] <= found.lengths[1] <= LENGTHS[1]:
        low, high = found.lengths
        said.append(f"lengths changed by {low:.2f} to {high:.2f}")
    if found.rotation > ROTATION:
        said.append(f"turned by {found.rotation:.0f} degrees, over {ROTATION:g}")
    if found.overlap < OVERLAP:
        said.append(f"only {found.overlap:.0%} of the template's brain is in the field of view")
    return [f"{name}: doubtful alignment: {'; '.join(said)}."] if said else []


@step("register")
def register(
    working: Working,
    to: str = "mni152",
    dof: int = 12,
    channel: int = 0,
    order: int = 1,
    finest: float = 3.0,
) -> Working:
    """Bring a head or brain to a template by an affine registration.

    A foreground that an earlier step found (``brain_extraction``) says where the brain is;
    otherwise the whole head is matched to the template's brain, which has no skull. The map comes
    back through the inverse, in one interpolation.

    Args:
        working: a volume whose axes point as its header says, to within about 40 degrees.
        to: ``mni152`` (193 x 229 x 193, 1 mm), ``mni152-2mm`` (97 x 115 x 97), ``sri24``
            (240 x 240 x 155, 1 mm, as BraTS files lie, though aligned by MNI152), or the path of
            another brain without skull.
        dof: 6 rigid (as BraTS does), 7 with one length, 9 with three lengths, 12 affine.
        channel: the channel to register by; the others go along.
        order: 1 linear, 3 cubic spline.
        finest: mm between the points at which the images are compared in the end.

    Raises:
        ScanError: a 2D scan, or one that looks like no brain.
        ArgumentError: unknown template, ``dof``, ``order`` or channel.
    """
    scan = working.scan
    volume_only("register", scan, channel)
    if dof not in DOF:
        raise ArgumentError(f"register: dof is {dof}; it must be one of {DOF}.")
    if order not in (0, 1, 3):
        raise ArgumentError(f"register: order is {order}; 0 nearest, 1 linear or 3 cubic.")
    if not 1 <= finest <= 8:
        raise ArgumentError(f"register: finest is {finest}; it must lie in 1..8 mm.")
    space = find_space(to)
    mask = working.foreground
    if mask is not None and (mask.all() or not mask.any()):
        mask = None
    found, correlation = align(scan.data[channel], scan.affine, space.template, mask, dof, finest)
    notes = doubts("register", scan.name, found)
    if to == "sri24":
        notes.append("register: the grid is that of SRI24 as in BraTS files; aligned by MNI152.")
    facts = {
        "register_information": found.mutual_information,
        "register_correlation": correlation,
        "register_volume": found.volume,
        "register_rotation": found.rotation,
        "register_overlap": found.overlap,
    }
    moved = through(working, space.world @ found.matrix, space.affine, space.shape, order)
    return moved.noted(*notes, **facts)


def through(
    working: Working,
    world: np.ndarray | None,
    affine: np.ndarray,
    shape: tuple[int, ...],
    order: int = 1,
) -> Working:
    """Sample a scan and its foreground on another grid, without aliasing.

    Args:
        working: the scan.
        world: (4, 4) mm before to mm after, None where the patient doesn't move.
        affine: (4, 4) index of the new grid to mm after.
        shape: of the new grid.
        order: 0 nearest, 1 linear, 3 cubic spline.
    """
    data = working.scan.data
    matrix = np.eye(4) if world is None else world
    index_map = np.linalg.inv(matrix @ working.scan.affine) @ affine
    dims = data.ndim - 1
    ratio = np.linalg.norm(index_map[:dims, :dims], axis=1)
    # What lies outside the scan must look like background, whatever value that has.
    low = data.min(axis=tuple(range(1, data.ndim)), keepdims=True)
    smooth = np.stack([antialias(channel, ratio) for channel in data - low])
    image = sample(smooth, index_map, shape, order) + low
    mask = working.foreground
    if mask is not None:
        mask = sample(mask[None].astype(np.float32), index_map, shape)[0] > 0.5
    return working.moved(image, affine, mask, world)
