"""A detector on disk, and the run folder that it grows in. No pickle anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

import normscan
from normscan.errors import ArgumentError, OutputError, ScanError, nearest
from normscan.io import atomic_path, content_hash
from normscan.preprocess import Preprocess
from normscan.scan import Scan

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from normscan.detector import Detector
    from normscan.methods.base import Method

DETECTOR = "detector.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
FORMAT = 1


def plain(value: Any) -> Any:
    """Return a value as JSON will give it back: tuples become lists."""
    return json.loads(json.dumps(value))


def tupled(value: Any) -> Any:
    """Return lists as tuples, the form that methods take."""
    return tuple(tupled(v) for v in value) if isinstance(value, list) else value


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is there whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def build_preprocess(settings: dict[str, Any]) -> Preprocess:
    """Return a preprocessing from plain values; a ``preset`` among them was expanded before.

    Raises:
        ArgumentError: unknown setting (names the nearest one), or a value of the wrong type.
    """
    known = [f.name for f in fields(Preprocess)]
    for name in settings:
        if name not in known:
            raise ArgumentError(
                f"preprocess has no setting '{name}'.{nearest(name, known)} It has: {', '.join(known)}."
            )
    return Preprocess(**{name: _checked(name, value) for name, value in settings.items()})


def _checked(name: str, value: Any) -> Any:
    """Return the value of a preprocessing setting, of the type that it is declared with."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(get_type_hints(Preprocess)[name]).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ArgumentError(f"preprocess.{name} is {value!r}: {reason}.") from error


def check_array(array: np.ndarray) -> Scan:
    """Return an array as a scan, refusing what a file reader would refuse."""
    if not np.isfinite(array).all():
        raise ScanError("array: it holds NaN or infinite values. Replace them first.")
    if array.size and array.min() == array.max():
        raise ScanError("array: all values are the same, so there is nothing to see.")
    return Scan.from_array(array)


# ------------------------------------------------------------------ run folders


def claim_folder(folder: Path, configuration: dict[str, Any], resume: bool) -> None:
    """Make a run folder, or check that it is the one to go on with.

    Raises:
        OutputError: it exists (and ``resume`` is False), or belongs to another configuration.
    """
    if not _first_process():
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        config = folder / CONFIG if folder.is_dir() else folder
        if not folder.is_dir() or not config.is_file():
            raise OutputError(f"{folder} exists and is no run folder. Choose another one.")
        if not resume:
            state = "a finished" if (folder / DETECTOR).exists() else "an unfinished"
            raise OutputError(
                f"{folder} holds {state} run. Choose another folder, remove it, or go on with --resume."
            )
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


@contextlib.contextmanager
def tidied(folder: Path) -> Iterator[None]:
    """Remove the cache of prepared scans when the run ends, well or not.

    A run that failed before its first checkpoint leaves nothing: its folder can be used again.
    """
    try:
        yield
    except BaseException:
        if _first_process() and not (folder / CHECKPOINT).exists():
            for name in (CONFIG, LOG):
                (folder / name).unlink(missing_ok=True)
        raise
    finally:
        if _first_process():
            shutil.rmtree(folder / "cache", ignore_errors=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _first_process() -> bool:
    """Whether this is the only or the first of several processes."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def launch_fabric(device: str, devices: int, precision: str) -> Fabric:
    """Start Lightning Fabric on a device with a number of processes.

    Raises:
        ArgumentError: no such device or precision here.
    """
    from lightning_fabric import Fabric

    try:
        fabric = Fabric(
            accelerator=device,
            devices=devices,
            precision=precision,
            strategy="ddp" if devices > 1 else "auto",
        )
        fabric.launch()
    except (ValueError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(
            f"device '{device}' x {devices} with precision '{precision}' can't be used: {reason}"
        ) from error
    except Exception as error:
        if type(error).__name__ == "MisconfigurationException":
            raise ArgumentError(f"device '{device}' can't be used here: {error}") from error
        raise
    return fabric


# -------------------------------------------------------------------- detectors


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    from importlib.metadata import version

    names = ("torch", "numpy", "scipy", "monai", "timm")
    return {
        "normscan": normscan.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def provenance(detector: Detector) -> dict[str, Any]:
    """Who made a finding."""
    return {
        "method": detector.card.id,
        "preset": detector.preset,
        "detector_sha256": detector.fingerprint,
        "normscan": normscan.__version__,
        "seed": detector.seed,
    }


def check_folder(folder: Path) -> None:
    """Refuse a folder for results that can't be one, before the work; make nothing yet.

    Raises:
        OutputError: it, or a folder above it, is a file.
    """
    for path in (folder, *folder.parents):
        if path.is_file():
            raise OutputError(f"{path} is a file. Name a folder.")


def write_detector(detector: Detector, folder: Path) -> None:
    """Write weights, card and, last, ``detector.json``: where that is, the rest is whole."""
    from normscan.training.checkpoint import write_tensors

    method, threshold = detector.method, detector.scan_threshold
    if method is None or threshold is None:
        raise OutputError("this detector was not fitted, so there is nothing to save.")
    write_tensors(folder / WEIGHTS, _plain(method.state_dict()))
    detector.fingerprint = content_hash(folder / WEIGHTS)
    state = {
        "format": FORMAT,
        "configuration": detector.configuration(),
        "channels": list(detector.channels),
        "scan_threshold": threshold.to_dict(),
        "pixel_threshold": detector.pixel_threshold,
        "training": detector.training,
        "gate": None if detector.gate is None else detector.gate.to_dict(),
        "sha256": detector.fingerprint,
        "versions": versions(),
        "licence": "weights: as the training data allow; code: Apache-2.0",
    }
    with atomic_path(folder / "card.md") as temporary:
        temporary.write_text(model_card(detector), encoding="utf-8")
    write_json(folder / DETECTOR, state)


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share nothing; what is so already isn't copied, it may be large."""
    plain: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in known or storage.nbytes() != value.nbytes:
            value = value.clone()
        known.add(storage.data_ptr())
        plain[name] = value
    return plain


def read_detector(folder: Path) -> dict[str, Any]:
    """Read and check ``detector.json``.

    Raises:
        OutputError: missing, unfinished, damaged, or of a later format.
    """
    path = folder / DETECTOR
    if not path.is_file():
        if (folder / CONFIG).is_file():
            raise OutputError(f"{folder}: the run is not finished. Finish it with fit --resume.")
        raise OutputError(f"{folder} holds no detector ({DETECTOR} is missing).")
    try:
        state: dict[str, Any] = read_json(path)
        found, stored = state["format"], state["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is damaged ({error}). Train again.") from error
    if found != FORMAT:
        raise OutputError(
            f"{path} has format {found}; this version reads {FORMAT}. Update normscan."
        )
    weights = folder / WEIGHTS
    if not weights.is_file() or content_hash(weights) != stored:
        raise OutputError(f"{weights} is missing or not the file that {DETECTOR} describes.")
    return state


def read_method(detector: Detector, folder: Path) -> Method:
    """Build the method and give it its stored weights."""
    from safetensors.torch import load_file

    from normscan.networks.backbones import weights_from_state
    from normscan.training.loop import seeded
    from normscan.wrappers import wrap

    with seeded(detector.seed), weights_from_state():
        method = wrap(detector.card, detector.arguments, detector.wrappers)
    try:
        method.load_weights(load_file(folder / WEIGHTS))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise OutputError(f"{folder / WEIGHTS} doesn't fit {detector.card.id}: {reason}") from error
    return method.requires_grad_(False).eval()


def _gate_line(detector: Detector) -> str:
    if detector.gate is None:
        return "none"
    train, held_out = detector.gate.counts
    return (
        f"refuses what is unlike {train} training and {held_out} other healthy scans; it stores "
        "coarse thumbnails of them."
    )


def model_card(detector: Detector) -> str:
    """Return the card of a fitted detector as Markdown."""
    card, training, pre = detector.card, detector.training, detector.preprocess
    size = " x ".join([str(pre.size)] * detector.arguments["dims"])
    lines = [
        f"# {card.id} detector",
        "",
        f"{card.summary} ({card.paper}; preset `{detector.preset}`).",
        "",
        "**Research use. Not for diagnosis, not a medical device.**",
        "",
        "- Intended use: rank scans and mark places that depart from the healthy training scans.",
        f"- Accepted input: {detector.arguments['dims']}D "
        f"{'slices of scans' if detector.arguments['dims'] == 2 else 'volumes'}, channels "
        f"{', '.join(detector.channels)}, of the kind it was trained on; brought to {size} pixels.",
        f"- Trained on: {training['cohort_size']['train']} healthy scans of "
        f"{training['subjects']['train']} subjects; threshold from "
        f"{training['cohort_size']['val']} more of {training['subjects']['val']}.",
        f"- Wrappers: {', '.join(detector.wrappers) or 'none'}",
        f"- Quality gate: {_gate_line(detector)}",
        f"- Operating point: {training.get('calibration', 'not calibrated')}",
        f"- Post-processing: {', '.join(detector.postprocess) or 'none'}; score: {detector.reduction}.",
        f"- Weights: sha256 {detector.fingerprint}",
        "",
    ]
    if pre.steps:
        names = [spec if isinstance(spec, str) else next(iter(spec)) for spec in pre.steps]
        lines.insert(-1, f"- Preparation before the working grid: {', '.join(names)}.")
    return "\n".join(lines)
