"""A detector as one ONNX file: the network with all around it, checked against torch before it counts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from normscan.detector.described import FORMAT, card_facts, packed_places
from normscan.detector.graph import METADATA, Graph, Outputs, Pieces, Signature, session
from normscan.detector.runner import run
from normscan.detector.state import State
from normscan.detector.storage import description, write_state
from normscan.errors import ArgumentError, NormscanError, OutputError
from normscan.export.reasons import FURTHER, REASONS
from normscan.export.tracing import NotExportableError, Traced, graph_of
from normscan.io.atomic import atomic_path
from normscan.io.onnx import with_metadata
from normscan.methods.base import Method

TOLERANCE = 1e-4  # of the largest value of an output
MOST_BYTES = 2**31 - 2**20  # of a file that every reader of protocol buffers takes
MOST_DRAWS = 64


def write_onnx(state: State, path: Path) -> Signature:
    """Write a fitted detector as one ONNX file.

    Raises:
        ArgumentError: it has no graph; says why.
        OutputError: it was not fitted, the file is there, or the graph is too large.
    """
    if state.method is None:
        raise OutputError("this detector was not fitted, so there is nothing to export.")
    if path.exists():
        raise OutputError(f"{path} exists. Choose another file with --out, or remove it.")
    model, signature = exported(state)
    if not state.fingerprint:  # fitted in memory, so its weights have no file yet
        with tempfile.TemporaryDirectory(prefix="normscan-") as temporary:
            state = write_state(state, Path(temporary))
    about = {
        "format": FORMAT,
        "card": card_facts(state.card),
        "detector": description(state),
        "graph": asdict(signature),
        "places": packed_places(state.places),
    }
    model = with_metadata(model, {METADATA: json.dumps(about)})
    if len(model) > MOST_BYTES:
        raise OutputError(
            f"the graph takes {len(model) / 2**30:.1f} GiB, and an ONNX file holds 2. Fit a smaller "
            "memory bank or network."
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(model)
    return signature


def exported(state: State) -> tuple[bytes, Signature]:
    """Return the graph of a fitted detector's method, and its signature.

    Any number and size of images goes in where the method allows that; else images of the working
    size, else one at a time. Each graph is run beside the method on other images before it counts.

    Raises:
        ArgumentError: there is none; says why.
    """
    method, id = state.method, state.card.id
    assert method is not None
    if id in REASONS:
        raise ArgumentError(f"'{id}' has no graph: {REASONS[id]}.")
    device = next((t.device for t in [*method.parameters(), *method.buffers()]), None)
    method.to("cpu")
    try:
        return first_equal(state, method)
    except NotExportableError as error:
        raise ArgumentError(f"'{id}' with these settings has no graph: {error}.") from error
    finally:
        method.to(device or "cpu")


def first_equal(state: State, method: Method) -> tuple[bytes, Signature]:
    """Return the freest graph that gives what the method gives, and its signature.

    Raises:
        NotExportableError: there is none.
    """
    if method.needs_grad:
        raise NotExportableError("its map takes gradients, which onnxruntime doesn't compute")
    if "further" in method.uses:
        raise NotExportableError(FURTHER)
    beside = tuple(n for n, use in method.uses.items() if use.prediction == "needed")
    traced = Traced(method, _inputs(method, beside))
    size = (state.patch or state.preprocess.size,) * state.arguments["dims"]
    two = example(state, method, 2, size)
    with torch.no_grad():
        draws = traced.draws(two, state.seed)
    if len(draws) > MOST_DRAWS:
        raise NotExportableError(
            f"it draws random numbers {len(draws)} times a scan, and a graph as long as that is "
            "slower than torch"
        )
    whole = Signature(
        traced.inputs, draws, traced.members, 0, (), state.seed, method.context, beside
    )
    reason = NotExportableError("nothing was tried")
    for signature, plain, others in _attempts(state, method, whole, size):
        try:
            pieces = two if not signature.batch else example(state, method, 1, size)
            model = graph_of(traced, pieces, signature, plain)
            for other in others:
                _compare(run(method, other, state.seed), _by_graph(model, signature, other))
            return model, signature
        except NotExportableError as error:
            reason = error
    raise reason


def _inputs(method: Method, beside: tuple[str, ...]) -> tuple[str, ...]:
    context = ("context",) if method.context else ()
    return ("image", "foreground", "position", *context, *beside)


def _attempts(
    state: State, method: Method, whole: Signature, size: tuple[int, ...]
) -> Iterator[tuple[Signature, int | None, list[Pieces]]]:
    """Yield what a graph might take, which sizes are numbers in it, and pieces to compare it on."""
    three = example(state, method, 3, size, seed=1)
    larger = example(state, method, 2, (*size[:-1], 2 * size[-1]), seed=2)
    if not any(len(draw.shape) > 1 for draw in whole.draws):
        try:
            run(method, larger, state.seed)
        except (NormscanError, RuntimeError, ValueError, IndexError, AssertionError):
            pass  # it knows one size only
        else:
            yield whole, None, [three, larger]
    yield replace(whole, size=size), None, [three]
    yield replace(whole, size=size), 1, [three]
    yield replace(whole, size=size, batch=1), 0, [three]


def example(
    state: State, method: Method, count: int, size: tuple[int, ...], seed: int = 0
) -> Pieces:
    """Random images with all that a graph takes beside them."""
    rng = np.random.default_rng(seed)
    shape = (count, state.arguments["channels"], *size)
    image = rng.random(shape, np.float32)
    beside = {}
    if method.context:
        around = rng.random((*shape[:2], 2 * method.context + 1, *size), np.float32)
        around[:, :, method.context] = image
        beside["context"] = around
    for name, use in method.uses.items():
        if use.prediction == "needed":
            channels = state.arguments.get("targets") or 1
            scans = rng.random((count, channels, *size), np.float32)
            beside[name] = scans if name == "target" else (3 * scans[:, :1]).astype(np.int32)
    inside = np.ones((count, 1, *size), bool)
    inside[:, :, 0] = False
    return Pieces(
        image, inside, rng.random(count, np.float32), list(range(count)), [{}] * count, beside
    )


def _by_graph(model: bytes, signature: Signature, pieces: Pieces) -> list[Outputs]:
    try:
        return Graph(session(model, 1), signature).run(pieces)
    except Exception as error:  # onnxruntime raises kinds of its own
        reason = " ".join(str(error).split())[:300]
        raise NotExportableError(f"onnxruntime can't run its graph: {reason}") from error


def _compare(ours: list[Outputs], theirs: list[Outputs]) -> None:
    """Refuse a graph that departs from the method."""
    for one, other in zip(ours, theirs, strict=True):
        pairs = [(name, one.arrays[name], other.arrays.get(name)) for name in one.arrays]
        if one.scores is not None:
            scores = None if other.scores is None else np.array(other.scores)
            pairs.append(("score", np.array(one.scores), scores))
        for name, a, b in pairs:
            if b is None or a.shape != b.shape:
                raise NotExportableError(f"its {name} has another shape in the graph")
            away = float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6))
            if not away <= TOLERANCE:
                raise NotExportableError(
                    f"its {name} differs from that of torch by {away:.1e} of its largest value"
                )
