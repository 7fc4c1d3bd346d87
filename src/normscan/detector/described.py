"""What ``detector.json``, or an exported file, says of a detector: checked, and as values of its state."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normscan.decide import Calibration, restored
from normscan.detector.graph import METADATA, Graph, Signature, session
from normscan.detector.state import State
from normscan.errors import ArgumentError, OutputError
from normscan.io.values import parse_json, tupled
from normscan.preprocess.settings import build_preprocess
from normscan.quality import Gate
from normscan.registry import Card
from normscan.scores.places import Places
from normscan.scores.postprocess import parse
from normscan.scores.reductions import check_reduction

FORMAT = 1  # of an exported file's description


def settled(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a state that a description holds, beside those that were asked for.

    Raises:
        KeyError, TypeError, ValueError, ArgumentError: it holds something else.
    """
    setup, threshold, pixel, gate = (
        about["configuration"], about["scan_threshold"], about["pixel_threshold"], about.get("gate")
    )  # fmt: skip
    return {
        "arguments": {k: tupled(v) for k, v in setup["arguments"].items()},
        "preprocess": build_preprocess(setup["preprocess"]),
        "channels": tuple(about["channels"]),
        "filled": tuple(about.get("filled", ())),
        "scan_threshold": None if threshold is None else restored(threshold),
        "pixel_threshold": None if pixel is None else float(pixel),
        "training": about["training"],
        "gate": None if gate is None else Gate.from_dict(gate),
        "fingerprint": about["sha256"],
        "replaces": bool(setup.get("replaces", False)),
    }


def calibration_of(setup: Mapping[str, Any]) -> Calibration:
    """Which healthy scans set the threshold; earlier versions knew no other kind than a split."""
    return Calibration(**setup.get("calibration", {"kind": "split"}))


def card_facts(card: Card) -> dict[str, Any]:
    """What a graph must know of its method's card, as plain values."""
    names = ("id", "family", "paper", "regime", "summary", "smallest_component")
    return {**{name: getattr(card, name) for name in names}, "dims": list(card.dims)}


def _card(facts: Mapping[str, Any]) -> Card:
    def build(**arguments: Any) -> Any:
        raise ArgumentError("an exported graph can't be trained: fit a detector and export that.")

    build.__doc__ = str(facts["summary"])
    return Card(
        str(facts["id"]), str(facts["family"]), str(facts["paper"]), str(facts["regime"]),
        tuple(map(int, facts["dims"])), build, {"paper": {}},
        smallest_component=int(facts["smallest_component"]),
    )  # fmt: skip


def packed_places(places: Places | None) -> str | None:
    """Return healthy mean and deviation at each place as text, None without them."""
    if places is None:
        return None
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **places.arrays())
    return base64.b64encode(buffer.getvalue()).decode()


def _places(text: str | None) -> Places | None:
    if text is None:
        return None
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        return Places.of_arrays(dict(arrays))


def read_exported(path: Path, threads: int | None = None) -> State:
    """Read a detector from the file that ``normscan export`` wrote; torch isn't imported.

    Args:
        path: of the ONNX file.
        threads: of the arithmetic; None for onnxruntime's own choice.

    Raises:
        OutputError: no such file, a damaged one, or one that isn't normscan's.
        ArgumentError: onnxruntime isn't installed.
    """
    from normscan.detector.stored import check_stored

    if not path.is_file():
        raise OutputError(f"{path}: there is no such file. Name one that normscan export wrote.")
    model = path.read_bytes()
    opened = session(model, threads)
    text = opened.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise OutputError(
            f"{path} is a graph without preprocessing and threshold. Write it with "
            "`normscan export RUN --to onnx`."
        )
    return _guarded(path, lambda: _state(parse_json(text), opened, check_stored))


def _guarded(path: Path, read: Callable[[], State]) -> State:
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError, ArgumentError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise OutputError(f"{path} is damaged ({reason}). Export it again.") from error


def _state(whole: Mapping[str, Any], opened: Any, check: Callable[[Any], None]) -> State:
    if whole["format"] != FORMAT:
        raise ValueError(f"format {whole['format']}; this version reads {FORMAT}: update normscan")
    about = whole["detector"]
    check(about)
    setup = about["configuration"]
    parse(setup["postprocess"])
    card, fields = _card(whole["card"]), settled(about)
    state = State(
        card, setup["preset"], fields.pop("arguments"), fields.pop("preprocess"),
        tuple(setup["postprocess"]), check_reduction(setup["reduction"]), setup["fpr"],
        setup["pixel_fpr"], setup["patch"], setup["seed"], tuple(setup.get("wrappers", ())),
        calibration_of(setup), false_components=setup.get("false_components"),
        places=_places(whole["places"]), graph=Graph(opened, Signature.from_dict(whole["graph"])),
        **fields,
    )  # fmt: skip
    if state.scan_threshold is None and not state.may_stay_open:
        raise ValueError("it has no scan threshold")
    return state
