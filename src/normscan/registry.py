"""The registry: one decorator puts a method into the library, the command line, the docs and the tests."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normscan.errors import ArgumentError, nearest
from normscan.signatures import Options, completed

REGIMES = (
    "healthy",
    "healthy+unlabelled",
    "paired-modality",
    "image-labels",
    "few-anomalies",
    "zero-shot",
    "few-shot",
)

# Packages that register methods.
ROOMS = ("normscan.methods", "normscan.auto")

INDEX = Path(__file__).parent / "methods" / "index.json"

# Arguments that the cohort settles, so that nobody gives them.
SETTLED = ("channels", "targets", "further")

# Keys that a preset may set beside the method's own arguments: they belong to the detector.
DETECTOR_KEYS = ("preprocess", "postprocess", "reduction", "wrappers")


@dataclass(frozen=True)
class Card:
    """What the library knows about a method without building it.

    Attributes:
        id: the name in ``create(id)``.
        family: package below ``normscan.methods`` that holds it.
        paper: author and year, or where it was published.
        regime: what it may see in training, one of ``REGIMES``.
        dims: numbers of spatial axes that it can work on.
        build: the registered function.
        presets: changes to the defaults by name; ``paper`` changes nothing, ``tiny`` is small
            enough for the contract tests.
        postprocess: default chain applied to the stitched map, see ``normscan.scores.postprocess``.
        reduction: how the map becomes an image score, see ``normscan.scores.reductions``.
        smallest_component: components of the segmentation with so many voxels of the working grid
            or fewer are dropped.
        preprocess: changes to the default preprocessing.
        plan: settles arguments from the healthy scans before fitting, see ``normscan.auto.plan``.
    """

    id: str
    family: str
    paper: str
    regime: str
    dims: tuple[int, ...]
    build: Callable[..., Any]
    presets: Mapping[str, Mapping[str, Any]]
    postprocess: tuple[str, ...] = ()
    reduction: str = "foreground_mean"
    smallest_component: int = 0
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    plan: Callable[..., dict[str, Any]] | None = None

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.build) or "").partition("\n")[0]

    @property
    def may_stay_open(self) -> bool:
        """Whether it works without healthy scans for a threshold; then it takes no decision."""
        return self.regime in ("few-shot", "zero-shot")

    @property
    def defaults(self) -> dict[str, Any]:
        """The arguments with the article's values."""
        return {p.name: p.default for p in inspect.signature(self.build).parameters.values()}

    def arguments(self, preset: str = "paper", **changes: Any) -> dict[str, Any]:
        """Return all arguments of the method for a preset with some of them changed.

        Raises:
            ArgumentError: unknown preset or argument; names the nearest known one.
        """
        defaults = self.defaults
        values = {**defaults, **{k: v for k, v in self.preset(preset).items() if k in defaults}}
        for name, value in changes.items():
            if name not in defaults:
                raise ArgumentError(
                    f"method '{self.id}' has no argument '{name}'.{nearest(name, defaults)} "
                    f"It has: {', '.join(defaults)}."
                )
            values[name] = value
        return values

    def preset(self, name: str) -> Mapping[str, Any]:
        """Return what a preset changes: method arguments and, under ``DETECTOR_KEYS``, the rest."""
        if name not in self.presets:
            raise ArgumentError(
                f"method '{self.id}' has no preset '{name}'.{nearest(name, self.presets)} "
                f"It has: {', '.join(self.presets)}."
            )
        return self.presets[name]

    def create(self, **arguments: Any) -> Any:
        """Build the method; its weights come from the caller's random state."""
        method = self.build(**arguments)
        method.card = self
        return method


_CARDS: dict[str, Card] = {}
_loaded = False


def register(
    id: str,
    *,
    paper: str,
    regime: str = "healthy",
    dims: tuple[int, ...] = (2,),
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    postprocess: tuple[str, ...] = (),
    reduction: str = "foreground_mean",
    smallest_component: int = 0,
    preprocess: Mapping[str, Any] | None = None,
    tiny: Mapping[str, Any] | None = None,
    options: Options | None = None,
    plan: Callable[..., dict[str, Any]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function that builds a method; see ``Card`` for the arguments.

    ``options`` are arguments that the function shares with others and takes as ``**options``: its
    signature lists them, its docstring describes them (``normscan.signatures``).

    The presets ``paper`` and ``code`` always exist: without an entry they are the defaults. Whether
    released code does the same, or there is none, the method's record in ``tests/golden`` says.

    Raises:
        ValueError: the name is taken, the regime is unknown or lacks its argument (``shots`` of
            ``few-shot``), or a preset names no argument.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        if id in _CARDS:
            raise ValueError(f"the method name '{id}' is taken by {_CARDS[id].build}")
        if regime not in REGIMES:
            raise ValueError(f"unknown regime '{regime}' of method '{id}'")
        build = completed(build, options)
        card = Card(
            id=id,
            family=build.__module__.removeprefix("normscan.")
            .removeprefix("methods.")
            .partition(".")[0],
            paper=paper,
            regime=regime,
            dims=dims,
            build=build,
            presets={"paper": {}, "code": {}, **(presets or {}), "tiny": tiny or {}},
            postprocess=postprocess,
            reduction=reduction,
            smallest_component=smallest_component,
            preprocess=preprocess or {},
            plan=plan,
        )
        if regime == "few-shot" and "shots" not in card.defaults:
            raise ValueError(f"method '{id}' learns from a few references: give it 'shots'")
        known = {*card.defaults, *DETECTOR_KEYS}
        for name, changes in card.presets.items():
            unknown = set(changes) - known
            if unknown:
                raise ValueError(f"preset '{name}' of '{id}' sets unknown {sorted(unknown)}")
        _CARDS[id] = card
        return build

    return decorate


def load_all() -> dict[str, Card]:
    """Import every module that registers methods and return the cards by id, sorted."""
    global _loaded
    if not _loaded:
        for room in ROOMS:
            package = importlib.import_module(room)
            for module in pkgutil.walk_packages(package.__path__, f"{room}."):
                importlib.import_module(module.name)
        _loaded = True
    return dict(sorted(_CARDS.items()))


def list_methods(
    pattern: str = "*", *, family: str | None = None, regime: str | None = None,
    dims: int | None = None,
) -> dict[str, Card]:  # fmt: skip
    """Return the cards of methods by id, sorted.

    Args:
        pattern: of ids, such as ``dae*`` or ``*ddpm*``.
        family: such as ``features``.
        regime: one of ``REGIMES``.
        dims: number of spatial axes that they must work on.

    Raises:
        ArgumentError: there is no such family or regime.
    """
    cards = load_all()
    for name, given, known in (
        ("family", family, {card.family for card in cards.values()}),
        ("regime", regime, REGIMES),
    ):
        if given is not None and given not in known:
            listed = ", ".join(sorted(known))
            raise ArgumentError(
                f"there is no {name} '{given}'.{nearest(given, known)} It is of: {listed}."
            )
    return {
        id: card
        for id, card in cards.items()
        if fnmatch.fnmatchcase(id, pattern.lower())
        and family in (None, card.family)
        and regime in (None, card.regime)
        and (dims is None or dims in card.dims)
    }


@functools.cache
def index() -> dict[str, Any]:
    """What is known of the methods without importing them; ``docs/generate.py --index`` writes it.

    Returns:
        ``fit``: the options of that command, and ``methods``: by id the module, family, regime,
        dims, paper, presets and summary of each, its options, and what presets change of them. An
        option is its flags, metavar and help.
    """
    found: dict[str, Any] = json.loads(INDEX.read_text(encoding="utf-8"))
    return found


def card(id: str) -> Card:
    """Return the card of a method; only its own module is imported.

    Raises:
        ArgumentError: no such method; names the nearest one.
    """
    known = index()["methods"]
    if id not in _CARDS and id in known:
        importlib.import_module(known[id]["module"])
    if id in _CARDS:
        return _CARDS[id]
    cards = load_all()
    if id not in cards:
        raise ArgumentError(
            f"there is no method '{id}'.{nearest(id, cards)} `normscan methods` lists them all."
        )
    return cards[id]
