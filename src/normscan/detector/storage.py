"""A detector on disk: weights, ``detector.json``, card. No pickle anywhere."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from normscan.cohort import Division
from normscan.cohort.anomalies import FewAnomalies
from normscan.detector.allowance import Allowance
from normscan.detector.described import calibration_of, settled
from normscan.detector.signed import PLACES, SIGNATURE, check_trusted
from normscan.detector.state import State, ask
from normscan.detector.unnamed import hidden, shown
from normscan.errors import ArgumentError, OutputError
from normscan.io import atomic_path, content_hash
from normscan.io.values import read_json, write_json
from normscan.methods.base import Method
from normscan.methods.folds import Folds
from normscan.networks.backbones import weights_from_state
from normscan.quality import Gate
from normscan.rng import seeded
from normscan.scores.places import Places
from normscan.training.checkpoint import write_tensors
from normscan.training.fabric import check_device
from normscan.training.folder import CONFIG, DETECTOR, DIVISION, WEIGHTS
from normscan.version import __version__
from normscan.wrappers import wrap

FORMAT = 1
FILES = (
    DETECTOR,
    WEIGHTS,
    PLACES,
    "card.md",
    DIVISION,
    *SIGNATURE,
)  # that a detector may consist of
MOST = 8 * 10**9  # bytes of weights from elsewhere, unless more is asked for


def bounds(most: int = MOST) -> dict[str, int]:
    """Return the most bytes that each file of a detector from elsewhere may have, by name."""
    return {name: most if name.endswith(".safetensors") else 256 * 10**6 for name in FILES}


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    from importlib.metadata import version

    names = ("torch", "numpy", "scipy", "monai", "timm")
    return {
        "normscan": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def write_state(state: State, folder: Path) -> State:
    """Write weights, card and, last, ``detector.json``: where that is, the rest is whole.

    Returns:
        The state with the fingerprint of its weights.

    Raises:
        OutputError: it was not fitted, or the folder can't be written.
    """
    method, threshold = state.method, state.scan_threshold
    if method is None or (threshold is None and not state.may_stay_open):
        raise OutputError("this detector was not fitted, so there is nothing to save.")
    write_tensors(folder / WEIGHTS, _plain(method.state_dict()))
    state = state.changed(fingerprint=content_hash(folder / WEIGHTS))
    if state.places is not None:
        arrays = {k: torch.from_numpy(v) for k, v in state.places.arrays().items()}
        write_tensors(folder / PLACES, arrays)
    about = description(state)
    about["places_sha256"] = None if state.places is None else content_hash(folder / PLACES)
    with atomic_path(folder / "card.md") as temporary:
        card = model_card(state.changed(training=about["training"]))
        temporary.write_text(card, encoding="utf-8")
    if state.division is not None:
        state.division.write(folder / DIVISION)
    write_json(folder / DETECTOR, about)
    return state


def description(state: State) -> dict[str, Any]:
    """Return what ``detector.json`` says of a fitted detector, without the names of its scans."""
    threshold = state.scan_threshold
    about = {
        "format": FORMAT,
        "configuration": state.configuration(),
        "channels": list(state.channels),
        "filled": list(state.filled),
        "scan_threshold": None if threshold is None else threshold.to_dict(),
        "pixel_threshold": state.pixel_threshold,
        "training": state.training,
        "gate": None if state.gate is None else state.gate.to_dict(),
        "sha256": state.fingerprint,
        "places_sha256": None,
        "versions": versions(),
        "licence": "weights: as the training data allow; code: Apache-2.0",
    }
    return hidden(about, state.division)


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
        if not folder.is_dir():
            raise OutputError(
                f"{folder}: holds no detector: there is no such folder. Name a run folder."
            )
        if (folder / CONFIG).is_file():
            raise OutputError(f"{folder}: the run is not finished. Finish it with fit --resume.")
        raise OutputError(f"{folder} holds no detector ({DETECTOR} is missing).")
    try:
        state: dict[str, Any] = read_json(path)
        found, stored = state["format"], state["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is damaged ({error}). Train again.") from error
    if found != FORMAT or type(found) is not int:
        raise OutputError(
            f"{path} has format {found}; this version reads {FORMAT}. Update normscan."
        )
    weights = folder / WEIGHTS
    if not weights.is_file() or content_hash(weights) != stored:
        raise OutputError(f"{weights} is missing or not the file that {DETECTOR} describes.")
    from normscan.detector.stored import check_stored  # pydantic, which is dear to import

    try:
        check_stored(state)
    except ArgumentError as error:
        raise OutputError(f"{path} is damaged ({error}). Train again.") from error
    return state


def read_state(folder: Path, device: str = "auto") -> State:
    """Read a detector; see ``normscan.detector.load``."""
    from normscan.detector.stored import check_arguments

    check_device(device)
    about = read_detector(folder)
    try:
        division = Division.read(folder / DIVISION) if (folder / DIVISION).exists() else None
        about = shown(about, division)
        setup = about["configuration"]
        given = ("preset", "postprocess", "reduction", "fpr", "pixel_fpr", "patch", "seed")
        asked = ask(
            setup["method"],
            **{k: setup[k] for k in given},
            wrappers=setup.get("wrappers", ()),
            calibration=calibration_of(setup),
            false_components=setup.get("false_components"),
        )
        check_arguments(asked.card, setup["arguments"], len(about["channels"]))
        if setup["arguments"]["size"] != (size := setup["patch"] or setup["preprocess"]["size"]):
            raise ValueError(
                f"its method works on {setup['arguments']['size']} pixels, not on {size}"
            )
        state = asked.changed(
            **settled(about),
            division=division,
            places=_read_places(folder, about.get("places_sha256")),
        )
        if state.scan_threshold is None and not state.may_stay_open:
            raise ValueError("it has no scan threshold")
        method = read_method(state, folder)
    except (
        LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, ArgumentError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()).rstrip(".")
        raise OutputError(f"{folder / DETECTOR} is damaged ({reason}). Train again.") from error
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        method.to(chosen if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(f"device '{device}' can't be used here: {reason}") from error
    return state.changed(method=method)


def read_gate(folder: Path) -> Gate | None:
    """Read the quality gate of a stored detector, None if it has none; its weights are not read.

    Raises:
        OutputError: no detector there, an unfinished or a damaged one.
    """
    check_trusted(folder)
    try:
        stored = read_detector(folder).get("gate")
        return None if stored is None else Gate.from_dict(stored)
    except (AttributeError, ArgumentError) as error:
        reason = str(error).rstrip(".")
        raise OutputError(f"{folder / DETECTOR} is damaged ({reason}). Train again.") from error


def packed(state: State) -> dict[str, bytes]:
    """Return a fitted detector as the content of its stored files, by name."""
    with tempfile.TemporaryDirectory(prefix="normscan-") as temporary:
        write_state(state, Path(temporary))
        return {path.name: path.read_bytes() for path in Path(temporary).iterdir()}


def unpacked(files: dict[str, bytes], device: str) -> State:
    """Return the detector of ``packed``, on its device or, where that is missing, on the CPU."""
    device = device if device == "cpu" or torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="normscan-") as temporary:
        for name, content in files.items():
            (Path(temporary) / Path(name).name).write_bytes(content)
        return read_state(Path(temporary), device)


def _read_places(folder: Path, stored: str | None) -> Places | None:
    """Read what a reduction compares the map with, where it does."""
    if stored is None:
        return None
    path = folder / PLACES
    if not path.is_file() or content_hash(path) != stored:
        raise OutputError(f"{path} is missing or not the file that {DETECTOR} describes.")
    return Places.of_arrays({k: v.numpy() for k, v in load_file(path).items()})


def read_method(state: State, folder: Path) -> Method:
    """Build the method and give it its stored weights."""
    kept = state.calibration
    members = kept.folds if kept.kind == "cross" and not kept.refit else 0
    try:
        allowed = Allowance(folder / WEIGHTS)
    except ValueError as error:
        raise OutputError(f"{folder / WEIGHTS} doesn't fit {state.card.id}: {error}") from error
    with seeded(state.seed), weights_from_state(), allowed:
        method = wrap(state.card, state.arguments, state.wrappers)
        if members and not method.leaves_out:  # else one fit holds all folds
            others = [wrap(state.card, state.arguments, state.wrappers) for _ in range(members - 1)]
            method = Folds([method, *others])
    try:
        allowed.check_kinds(method)
        method.load_weights(load_file(folder / WEIGHTS))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise OutputError(f"{folder / WEIGHTS} doesn't fit {state.card.id}: {reason}") from error
    return method.requires_grad_(False).eval()


def _gate_line(state: State) -> str:
    if state.gate is None:
        return "none"
    train, held_out = state.gate.counts
    return (
        f"refuses what is unlike {train} training and {held_out} other healthy scans; it stores "
        "coarse thumbnails of them."
    )


def _trained_line(training: dict[str, Any]) -> str:
    sizes, subjects = training["cohort_size"], training["subjects"]
    line = (
        f"- Trained on: {sizes['train']} healthy scans of {subjects['train']} subjects; threshold"
    )
    if about := training.get("elsewhere"):
        return (
            f"{line} from {about['scans']} healthy scans of {about['subjects']} subjects of another "
            f"cohort, without training. `{DETECTOR}` keeps what was decided before."
        )
    if folds := training.get("folds"):
        return f"{line} from the same scans, each scored without its fold of {folds}."
    return f"{line} from {sizes['val']} {'more' if training['samples'] else 'scans'} of {subjects['val']}."


def _excluded(training: dict[str, Any]) -> str:
    return "; ".join(f"{entry['scan']} ({entry['reason']})" for entry in training["excluded"])


def model_card(state: State) -> str:
    """Return the card of a fitted detector as Markdown."""
    card, training, pre = state.card, state.training, state.preprocess
    size = " x ".join([str(pre.size)] * state.arguments["dims"])
    lines = [
        f"# {card.id} detector",
        "",
        f"{card.summary} ({card.paper}; preset `{state.preset}`).",
        "",
        "**Research use. Not for diagnosis, not a medical device.**",
        "",
        "- Intended use: rank scans and mark places that depart from the healthy training scans.",
        f"- Accepted input: {state.arguments['dims']}D "
        f"{'slices of scans' if state.arguments['dims'] == 2 else 'volumes'}, channels "
        f"{', '.join(state.channels)}, of the kind it was trained on; brought to {size} pixels.",
        _trained_line(training),
        *[
            f"- Joined later: {more['scans']} healthy scans of {more['subjects']} subjects."
            for more in training.get("updates", [])
        ],
        *([f"- Left out by hand: {_excluded(training)}."] if training.get("excluded") else []),
        *(
            [f"- Set apart for training: {FewAnomalies(**training['anomalies'])}."]
            if training.get("anomalies")
            else []
        ),
        *(
            [f"- References: {len(training['references'])}, listed in `{DETECTOR}`."]
            if "references" in training
            else []
        ),
        f"- Wrappers: {', '.join(state.wrappers) or 'none'}",
        f"- Quality gate: {_gate_line(state)}",
        f"- Operating point: {training.get('calibration', 'not calibrated')}",
        f"- Post-processing: {', '.join(state.postprocess) or 'none'}; score: {state.reduction}.",
        f"- Weights: sha256 {state.fingerprint}",
        "",
    ]
    if pre.steps:
        names = [spec if isinstance(spec, str) else next(iter(spec)) for spec in pre.steps]
        lines.insert(-1, f"- Preparation before the working grid: {', '.join(names)}.")
    return "\n".join(lines)
