"""A method as a graph that onnxruntime runs: its file says what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from normscan.errors import ArgumentError, ScanError
from normscan.methods.uses import Use
from normscan.seeds import Stream, derive_seed

METADATA = "normscan"  # key of what an exported file says of itself
NEEDS = (
    "a graph is run by onnxruntime, which isn't installed: pip install onnxruntime, or "
    "pip install 'normscan[onnx]'."
)


@dataclass
class Pieces:
    """Some slices, patches or volumes on their way into a method.

    Attributes:
        image: (B, C, *size) float32.
        foreground: (B, 1, *size) bool.
        position: (B,) float32, place of each in its subject.
        keys: number of each in its scan; its random numbers come from it.
        columns: what the cohort says of each.
        beside: by name what stands beside each, such as ``context``.
        further: (B, C, *its own size) by name, further images of each one's case.
    """

    image: np.ndarray
    foreground: np.ndarray
    position: np.ndarray
    keys: list[int]
    columns: list[dict[str, Any]] = field(default_factory=list)
    beside: dict[str, np.ndarray] = field(default_factory=dict)
    further: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        own = {name: getattr(self, name) for name in ("image", "foreground", "position")}
        return own | self.beside


@dataclass
class Outputs:
    """What a member of a method finds in some pieces.

    Attributes:
        arrays: (B, C, *size) by name.
        scores: of each piece, if the member gives them.
        further: (B, 1, *its own size) maps of further images by name.
    """

    NAMES: ClassVar = ("map", "reconstruction", "uncertainty")

    arrays: dict[str, np.ndarray]
    scores: list[float] | None = None
    further: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Draw:
    """Random numbers that a graph takes as an input.

    Attributes:
        kind: ``normal``, ``uniform`` or ``integers``.
        shape: of one sample's.
        bounds: low and high of integers.
    """

    kind: str
    shape: tuple[int, ...]
    bounds: tuple[int, int] = (0, 1)

    def of(self, stream: Stream) -> np.ndarray:
        """Draw them."""
        if self.kind == "integers":
            return stream.integers(*self.bounds, self.shape)
        drawn: np.ndarray = getattr(stream, self.kind)(self.shape)
        return drawn


@dataclass(frozen=True)
class Signature:
    """What goes into a graph and what comes out of it.

    Attributes:
        inputs: names of those arrays of ``Pieces`` that it takes.
        draws: the random numbers that it takes after them, ``draw_0`` and so on.
        members: names of the outputs of each member; in the graph ``map_0``, ``score_0``, ``map_1``
            and so on, in this order.
        batch: number of samples that it takes at once; 0 for any.
        size: spatial size that it takes; empty for any.
        seed: that the random numbers come from.
        context: neighbouring slices on each side, see ``Batch.context``.
        beside: what must stand beside a scan, see ``Method.uses``.
    """

    inputs: tuple[str, ...]
    draws: tuple[Draw, ...]
    members: tuple[tuple[str, ...], ...]
    batch: int
    size: tuple[int, ...]
    seed: int = 0
    context: int = 0
    beside: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, about: Mapping[str, Any]) -> Signature:
        """Return the signature of ``dataclasses.asdict``, as JSON gave it.

        Raises:
            ValueError: it is none.
        """
        try:
            draws = tuple(
                Draw(str(d["kind"]), tuple(map(int, d["shape"])), (int(low), int(high)))
                for d in about["draws"]
                for low, high in [d["bounds"]]
            )
            if any(draw.kind not in ("normal", "uniform", "integers") for draw in draws):
                raise ValueError("unknown random numbers")
            return cls(
                tuple(map(str, about["inputs"])), draws,
                tuple(tuple(map(str, names)) for names in about["members"]),
                int(about["batch"]), tuple(map(int, about["size"])), int(about["seed"]),
                int(about["context"]), tuple(map(str, about["beside"])),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise ValueError(f"its signature is damaged ({error})") from error

    def feeds(self, pieces: Pieces) -> list[np.ndarray]:
        """Return what the graph takes for some pieces, in order.

        Raises:
            ScanError: something that it takes isn't there, or the pieces have another size.
        """
        given = pieces.arrays()
        if self.size and pieces.image.shape[2:] != self.size:
            sizes = [" x ".join(map(str, s)) for s in (self.size, pieces.image.shape[2:])]
            raise ScanError(f"the graph takes images of {sizes[0]} pixels, not {sizes[1]}.")
        if missing := [name for name in self.inputs if name not in given]:
            raise ScanError(f"the graph takes a {missing[0]} beside each scan, and none was given.")
        streams = [Stream(derive_seed(self.seed, "predict", key)) for key in pieces.keys]
        drawn = [np.stack([draw.of(stream) for stream in streams]) for draw in self.draws]
        return [np.ascontiguousarray(given[name]) for name in self.inputs] + drawn


class Graph:
    """An exported method.

    Args:
        session: of onnxruntime, see ``session``.
        signature: of its graph.

    Attributes:
        context: see ``Method.context``.
        uses: see ``Method.uses``.
    """

    def __init__(self, session: Any, signature: Signature) -> None:
        self.session = session
        self.signature = signature
        self.context = signature.context
        self.uses = {name: Use(prediction="needed") for name in signature.beside}
        self._taken = {each.name for each in self.session.get_inputs()}

    def run(self, pieces: Pieces) -> list[Outputs]:
        """Return what each member finds in some pieces."""
        feeds = self.signature.feeds(pieces)
        step = self.signature.batch or len(pieces)
        parts = [
            self._some([array[at : at + step] for array in feeds])
            for at in range(0, len(pieces), step)
        ]
        whole = iter([np.concatenate(arrays) for arrays in zip(*parts, strict=True)])
        found = []
        for names in self.signature.members:
            outputs = {name: next(whole) for name in names}
            score = outputs.pop("score", None)
            scores = None if score is None else score.astype(np.float64).tolist()
            found.append(Outputs(outputs, scores))
        return found

    def _some(self, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
        names = [*self.signature.inputs, *(f"draw_{n}" for n in range(len(self.signature.draws)))]
        # What doesn't matter to the outputs is no input of the graph.
        given = {n: a for n, a in zip(names, feeds, strict=True) if n in self._taken}
        found: list[np.ndarray] = self.session.run(None, given)
        return found


def session(model: bytes, threads: int | None = None) -> Any:
    """Return a session of onnxruntime on the CPU.

    Raises:
        ArgumentError: it isn't installed, or can't read the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ArgumentError(NEEDS) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it raises kinds of its own
        reason = " ".join(str(error).split())[:300]
        raise ArgumentError(f"onnxruntime can't read the graph: {reason}") from error
