"""Simulate a whole cohort into a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normscan.errors import OutputError
from normscan.phantom.config import KINDS, PhantomConfig
from normscan.phantom.contrast import store
from normscan.phantom.files import write_descriptions, write_json, write_nifti, write_table
from normscan.phantom.retina import describe_retinas, write_retinas
from normscan.phantom.subject import Phantom, Subject

_LESION_COLUMNS = (
    "subject", "lesion", "kind", "x_mm", "y_mm", "z_mm", "diameter_mm", "volume_mm3", "contrast",
    "gain", "core_diameter_mm", "core_volume_mm3", "ring_mm", "rim_mm", "half_angle_deg",
    "mass_effect_mm", "mass_radius_mm", "seed",
)  # fmt: skip


def simulate(
    out: str | os.PathLike[str],
    healthy: int = 60,
    lesioned: int = 30,
    modalities: tuple[str, ...] = ("FLAIR",),
    dims: int = 2,
    spacing: float = 1.5,
    size: tuple[int, ...] | None = None,
    slices: int = 1,
    slice_gap: float = 3.0,
    heights: tuple[float, float] = (-10.0, 45.0),
    kinds: tuple[str, ...] = KINDS,
    diameter: tuple[float, float] | None = None,
    contrast: float = 1.0,
    wmh_count: tuple[int, int] = (3, 8),
    mass_effect: float = 0.5,
    irregularity: float = 0.15,
    edge: float = 1.5,
    min_area: float = 10.0,
    deformation: float = 3.5,
    scale_variation: float = 0.03,
    rotation: float = 2.5,
    shift: float = 2.0,
    sulci: float = 0.5,
    tissue_variation: float = 0.03,
    gain_variation: float = 0.08,
    texture: float = 0.03,
    bias: float = 0.08,
    noise: float = 0.02,
    skull_strip: bool = True,
    splits: tuple[float, float, float] = (0.6, 0.15, 0.25),
    seed: int = 0,
    anatomy: str = "brain",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a SIMULATED cohort of healthy and lesioned brains with exact lesion masks.

    Each subject depends on the seed, its own number and the settings only, not on how many others
    there are. The same call writes the same bits. The folder appears only when it is complete.

    Args:
        out: folder to make.
        healthy: number of healthy subjects; they come first.
        lesioned: number of subjects with lesions; all go into the test split.
        modalities: any of T1w, T2w, FLAIR.
        dims: 2 for axial slices, 3 for volumes.
        spacing: voxel size in mm, 0.5 to 8, the same along all axes.
        size: number of voxels along x, y (and z); by default what covers the brain, in
            multiples of 8.
        slices: number of slices per subject (dims=2).
        slice_gap: distance in mm between the slices of a subject.
        heights: lowest and highest slice, and lesion centre in a volume, in MNI mm. Drawn from the
            same distribution for healthy and lesioned subjects.
        kinds: kinds of lesion, taken in turn: wmh, tumour, infarct, bleed.
        diameter: smallest and largest diameter in mm of a ball of the lesion's volume, for all
            kinds; by default wmh 5 to 11 (each), tumour 24 to 50, infarct 20 to 45, bleed 9 to 24.
        contrast: factor on the intensity change; 0 gives exactly the healthy subject.
        wmh_count: fewest and most white-matter hyperintensities per subject.
        mass_effect: how strongly a tumour pushes tissue aside, 0 to 0.9; 0.5 is about 5 mm.
        irregularity: relative standard deviation of a lesion's radius, at most 0.3.
        edge: width in mm of the transition at a lesion's border; at least one voxel.
        min_area: smallest lesion area in mm2 on each slice of a lesioned subject.
        deformation: standard deviation in mm of each component of the random velocity field that
            gives a subject its shape.
        scale_variation: standard deviation of the logarithm of the head size, at most 0.05.
        rotation: standard deviation in degrees about each axis, at most 5.
        shift: standard deviation in mm along each axis, at most 5.
        sulci: standard deviation of the local log odds of fluid, and of white matter: how
            differently sulci, ventricles and cortex are drawn.
        tissue_variation: relative standard deviation of a tissue's mean intensity, at most 0.05.
        gain_variation: standard deviation of the logarithm of the receiver gain.
        texture: relative standard deviation of the intensity within a tissue.
        bias: standard deviation of the logarithm of the smooth bias field.
        noise: standard deviation of the noise, where 1 is the signal of white matter in T1w.
        skull_strip: set everything outside the brain to 0; otherwise there is noise.
        splits: shares of train, val and test among the healthy subjects.
        seed: seed of everything, 0 or more.
        anatomy: brain, or retina for B-scans of optical coherence tomography with label maps of
            their layers, as pictures. A retina takes healthy, lesioned, size (rows and columns),
            kinds (drusen, fluid, atrophy), contrast, deformation, shift, tissue_variation,
            gain_variation, bias, noise (of speckle), splits and seed.
        progress: called with the numbers of subjects done and in all.

    Returns:
        path of ``cohort.csv`` in the new folder.

    Raises:
        ArgumentError: a value outside its range, an unknown kind or modality, or no room for a
            lesion.
        OutputError: the folder exists, or can't be written.
    """
    config = PhantomConfig(
        healthy, lesioned, modalities, dims, spacing, size, slices, slice_gap, heights, kinds,
        diameter, contrast, wmh_count, mass_effect, irregularity, edge, min_area, deformation,
        scale_variation, rotation, shift, sulci, tissue_variation, gain_variation, texture, bias,
        noise, skull_strip, splits, seed, anatomy,
    )  # fmt: skip
    folder = Path(out)
    if folder.exists() or folder.is_symlink():
        raise OutputError(f"{folder} exists already. Choose another name or remove it.")
    building = folder.absolute().parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        building.mkdir(parents=True)
        _build(building, config, progress)
        building.rename(folder.absolute())
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{folder} can't be written: {reason}. Choose another place.") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder / "cohort.csv"


def _build(
    folder: Path, config: PhantomConfig, progress: Callable[[int, int], None] | None
) -> None:
    total = config.healthy + config.lesioned
    if config.anatomy == "retina":
        _build_retinas(folder, config, total, progress)
        return
    rows: list[dict[str, Any]] = []
    lesions: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    write_descriptions(folder)
    write_json(folder / "phantom.json", {"simulated": True, **config.as_dict()})
    for index in range(total):
        # The kind goes by the subject's number alone, so that other counts don't change it.
        kind = config.kinds[index % len(config.kinds)] if index >= config.healthy else None
        subject = Subject(config, index, kind)
        name, split = f"sub-{index + 1:03d}", _split(config, index)
        rows += [
            _write_image(folder, name, subject, part, split) for part in range(len(subject.grids))
        ]
        lesions += _lesion_rows(name, subject)
        people.append({"participant_id": name, "group": kind or "healthy", "split": split})
        if progress:
            progress(index + 1, total)
    write_table(folder / "participants.tsv", people, ("participant_id", "group", "split"), tab=True)
    write_table(folder / "lesions.csv", lesions, _LESION_COLUMNS)
    write_table(folder / "cohort.csv", rows, list(rows[0]))


def _build_retinas(
    folder: Path, config: PhantomConfig, total: int, progress: Callable[[int, int], None] | None
) -> None:
    describe_retinas(folder)
    write_json(folder / "phantom.json", {"simulated": True, **config.as_dict()})
    rows = []
    for index in range(total):
        rows.append(write_retinas(folder, config, index, _split(config, index)))
        if progress:
            progress(index + 1, total)
    write_table(folder / "cohort.csv", rows, list(rows[0]))


def _split(config: PhantomConfig, index: int) -> str:
    if index >= config.healthy:
        return "test"
    train = round(config.splits[0] * config.healthy)
    val = round((config.splits[0] + config.splits[1]) * config.healthy)
    return "train" if index < train else "val" if index < val else "test"


def _write_image(
    folder: Path, name: str, subject: Subject, part: int, split: str
) -> dict[str, Any]:
    """Write the images and masks of one slice or volume and return its row of ``cohort.csv``."""
    config = subject.config
    phantom = subject.render(part)
    scan = f"{name}_acq-slice{part + 1}" if config.slices > 1 else name
    affine = phantom.grid.affine
    paths = {m: f"{name}/anat/{scan}_{m}.nii.gz" for m in config.modalities}
    for modality, path in paths.items():
        write_nifti(folder / path, store(phantom.image[modality]), affine)
    brain = f"derivatives/brain/{name}/anat/{scan}_desc-brain_mask.nii.gz"
    write_nifti(folder / brain, phantom.brain.astype("uint8"), affine)
    mask = ""
    if subject.lesion:
        mask = f"derivatives/lesions/{name}/anat/{scan}_label-lesion_mask.nii.gz"
        write_nifti(folder / mask, phantom.mask.astype("uint8"), affine)
    single = len(paths) == 1
    return {
        "scan": scan,
        "subject": name,
        **{("path" if single else f"path_{m}"): path for m, path in paths.items()},
        "label": int(subject.lesion is not None),
        "mask": mask,
        "foreground": brain,
        "split": split,
        "kind": subject.kind or "healthy",
        **_describe(subject, phantom),
    }


def _describe(subject: Subject, phantom: Phantom) -> dict[str, Any]:
    """The free columns; place and diameter are those of the largest lesion."""
    config = subject.config
    rows = phantom.properties["lesions"]
    largest: dict[str, Any] = max(rows, key=lambda row: row["diameter_mm"], default={})
    size = "lesion_area_mm2" if config.dims == 2 else "lesion_volume_mm3"
    slice_column = {"slice_z_mm": float(phantom.grid.affine[2, 3])} if config.dims == 2 else {}
    return {
        **slice_column,
        size: round(phantom.properties["lesion_size"], 3),
        "lesions": len(rows),
        "lesion_diameter_mm": largest.get("diameter_mm", ""),
        "contrast": phantom.properties["contrast"],
        **{axis: largest.get(axis, "") for axis in ("x_mm", "y_mm", "z_mm")},
        "deformation_mm": phantom.properties["deformation_mm"],
        "seed": config.seed,
    }


def _lesion_rows(name: str, subject: Subject) -> list[dict[str, Any]]:
    if subject.lesion is None:
        return []
    shared = {
        "subject": name,
        "kind": subject.kind,
        "contrast": subject.config.contrast,
        "gain": round(subject.lesion.gain, 4),
        "seed": subject.config.seed,
    }
    return [
        {**shared, "lesion": number, **row}
        for number, row in enumerate(subject.lesion.properties, start=1)
    ]
