"""The run folder that a detector grows in: its files, whose it is, and what is left of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normscan.errors import OutputError
from normscan.io.values import read_json, write_json
from normscan.tracking import STATE as TRACKING

DETECTOR = "detector.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
DIVISION = "division.csv"
CACHE = "cache"
FOLDS = "folds"  # of a cross-calibrated detector; each has a folder
MAPS = "maps"  # of healthy scans, until a reduction is settled
MEMBER = "member.safetensors"  # a finished fold
PLAN = "plan.json"  # what the healthy scans settled before training, and why
BEGUN = (CONFIG, DIVISION, PLAN, TRACKING)  # written before anything is trained


def claim_folder(folder: Path, configuration: dict[str, Any], resume: bool) -> None:
    """Make a run folder, or check that it is the one to go on with.

    Raises:
        OutputError: it exists (and ``resume`` is False), or belongs to another configuration.
    """
    if not first_process():
        return
    begun = check_run(folder, resume)
    for left in folder.rglob(".tmp-*"):  # half a file of a run that was killed
        if left.is_file():
            left.unlink(missing_ok=True)
    if begun:
        config = folder / CONFIG
        try:
            before = dict(read_json(config))
        except (ValueError, TypeError) as error:
            raise OutputError(f"{config} is damaged. Remove the folder and train again.") from error
        # A key that is missing was written by an earlier version, which didn't know it.
        changed = [k for k, v in configuration.items() if before.get(k, v) != v]
        if changed:
            raise OutputError(
                f"{folder} was begun with other settings ({', '.join(changed)}). Resume with the same "
                "ones, or choose another folder."
            )
        return
    write_json(folder / CONFIG, configuration)


def check_run(folder: Path, resume: bool) -> bool:
    """Refuse a folder that can't be that of a new run, or of one to go on with.

    Returns:
        Whether it holds a run.

    Raises:
        OutputError: it exists and is no run folder, or ``resume`` is False.
    """
    if not first_process():  # the first made the folder for all
        return False
    if not folder.exists() or (folder.is_dir() and not any(map(_counts, folder.iterdir()))):
        return False
    config = folder / CONFIG if folder.is_dir() else folder
    if not folder.is_dir() or not config.is_file():
        raise OutputError(f"{folder} exists and is no run folder. Choose another one.")
    if not resume:
        state = "a finished" if (folder / DETECTOR).exists() else "an unfinished"
        raise OutputError(
            f"{folder} holds {state} run. Choose another folder, remove it, or go on with --resume."
        )
    return True


def _counts(path: Path) -> bool:
    """Whether a path in the folder is more than what a killed process left half written."""
    return not (path.is_file() and path.name.startswith(".tmp-"))


@contextlib.contextmanager
def tidied(folder: Path) -> Iterator[None]:
    """Remove the cache of prepared scans when the run ends, well or not.

    A run that failed before its first checkpoint leaves nothing: its folder can be used again.
    """
    try:
        yield
    except BaseException:
        begun = [folder / CHECKPOINT, *(folder / FOLDS).glob("*/*.safetensors")]
        if first_process() and not any(path.exists() for path in begun):
            shutil.rmtree(folder / FOLDS, ignore_errors=True)
            shutil.rmtree(folder / MAPS, ignore_errors=True)
            (folder / LOG).unlink(missing_ok=True)
            # With anything else there it can still be gone on with.
            if not {p.name for p in folder.glob("*") if _counts(p)} - {*BEGUN, CACHE}:
                for name in BEGUN:
                    (folder / name).unlink(missing_ok=True)
        raise
    finally:
        if first_process():
            shutil.rmtree(folder / CACHE, ignore_errors=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def first_process() -> bool:
    """Whether this is the only or the first of several processes, on all machines together.

    torchrun and SLURM number them; those that Lightning Fabric starts know their place on a machine.
    """
    told = os.environ
    if "RANK" in told:
        return int(told["RANK"]) == 0
    if int(told.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in told:
        return int(told["SLURM_PROCID"]) == 0
    return int(told.get("LOCAL_RANK", "0")) == 0
