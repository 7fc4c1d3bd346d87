"""Brain extraction by programs that the user has installed: HD-BET, SynthStrip, deepbet.

They are called as programs, not imported: their dependencies stay apart, and nothing of theirs is
needed to run normscan. The scan is handed over as a temporary NIfTI file without any header text.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normscan.errors import ArgumentError, ScanError
from normscan.scan import Scan

TIMEOUT = 3600


@dataclass(frozen=True)
class Tool:
    """A program that finds the brain.

    Attributes:
        programs: names by which it may be found on the PATH.
        how: how to get it.
        options: what it is told beside its input: a folder for its results, and the device.
    """

    programs: tuple[str, ...]
    how: str
    options: Callable[[Path, str], list[str]]


def _hd_bet(out: Path, device: str) -> list[str]:
    # HD-BET 2 writes only the mask, under a name that differs between versions.
    options = ["-o", str(out / "brain.nii.gz"), "-device", device]
    options += ["--save_bet_mask", "--no_bet_image"]
    return options + (["--disable_tta"] if device == "cpu" else [])


def _synthstrip(out: Path, device: str) -> list[str]:
    return ["-m", str(out / "mask.nii.gz")]


def _deepbet(out: Path, device: str) -> list[str]:
    # It needs a name for the brain too, and passes over a file that it takes for broken.
    options = ["-o", str(out.parent / "brain.nii.gz"), "-m", str(out / "mask.nii.gz")]
    return [*options, "--no-skip_broken", "--no_gpu" if device == "cpu" else "--no-no_gpu"]


TOOLS = {
    "hd-bet": Tool(
        ("hd-bet",),
        "pip install hd-bet (weights are fetched at its first run; github.com/MIC-DKFZ/HD-BET)",
        _hd_bet,
    ),
    "synthstrip": Tool(
        ("mri_synthstrip", "synthstrip-docker", "synthstrip-singularity"),
        "install FreeSurfer 7.3 or later, or the script synthstrip-docker from "
        "surfer.nmr.mgh.harvard.edu/docs/synthstrip",
        _synthstrip,
    ),
    "deepbet": Tool(
        ("deepbet-cli",),
        "pipx install deepbet (an environment of its own; its networks come with it)",
        _deepbet,
    ),
}


def run_tool(name: str, scan: Scan, channel: int = 0, device: str = "cpu") -> np.ndarray:
    """Return the brain mask (*scan.shape) that a program finds.

    Args:
        name: a key of ``TOOLS``.
        scan: a volume with its skull.
        channel: what the program sees.
        device: for HD-BET and deepbet, which is used on a GPU if it isn't ``cpu``.

    Raises:
        ArgumentError: the program isn't installed, fails or takes over an hour.
        ScanError: the mask it wrote doesn't fit the scan or is empty.
    """
    import nibabel

    tool = TOOLS[name]
    program = next((found for p in tool.programs if (found := shutil.which(p))), None)
    if program is None:
        raise ArgumentError(
            f"brain_extraction: {' or '.join(tool.programs)} isn't on the PATH, so '{name}' can't be "
            f"used. To have it: {tool.how}. Or take method 'atlas', which needs nothing."
        )
    with tempfile.TemporaryDirectory(prefix="normscan-") as folder:
        given, out = Path(folder, "in.nii.gz"), Path(folder, "out")
        out.mkdir()
        nibabel.save(nibabel.Nifti1Image(scan.data[channel], scan.affine), given)
        _call(name, [program, "-i", str(given), *tool.options(out, device)], scan)
        masks = sorted(out.glob("*.nii.gz"))
        if len(masks) != 1:
            raise ScanError(f"{scan.name}: {name} wrote {len(masks)} masks instead of one.")
        written = nibabel.load(masks[0])
        if tuple(written.shape) != scan.shape:
            raise ScanError(
                f"{scan.name}: {name} wrote a mask of shape {written.shape} for {scan.shape}."
            )
        mask = np.asarray(written.dataobj) > 0.5
    if not mask.any():
        raise ScanError(f"{scan.name}: {name} found no brain in it.")
    return mask


def _call(name: str, command: list[str], scan: Scan) -> None:
    # An environment of its own: what this one adds to Python's path isn't for it.
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(  # a list, so no shell reads the names
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False,
            env=own,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ArgumentError(
            f"{scan.name}: {name} took over {TIMEOUT // 60} minutes and was ended."
        ) from None
    except OSError as error:
        raise ArgumentError(f"{scan.name}: {command[0]} can't be run: {error.strerror}.") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ArgumentError(
            f"{scan.name}: {name} failed with code {done.returncode}: "
            f"{said[-1][:300] if said else 'it said nothing'}"
        )
