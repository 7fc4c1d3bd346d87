"""What a release itself gave for fixed weights and inputs, and ours beside it.

A record is ``<id>.toml``::

    repository = "owner/name"          # "" where there is no released code
    commit = "40 hex digits"
    files = ["networks/ae.py"]         # that were read and run
    state = "exact"                    # exact, departs, "no code" or "not run"
    departs = ["one line for each departure that stays: ours, theirs, why"]
    note = "what was run, and how; why it couldn't be"

    [[check]]
    name = "anomaly map"
    run = "map"                        # see RUNS, or "adapters_features:function"
    preset = "code"
    arguments = { size = 64 }          # changes of that preset's arguments
    module = "network"                 # for parameters and forward: a dotted path, "" for all
    shape = [2, 1, 64, 64]             # of the images, from ``fill.images``
    rule = "wave"                      # of weights and images, see ``fill``
    item = 0                           # which one of several outputs; left out for a tensor
    at = [0, 17, 4095]                 # flat indices; left out to compare ``mean`` and ``std``
    values = [0.1, 0.2, 0.3]           # theirs
    relative = 1e-4                    # of the largest value compared
    reason = "why it is wider than 1e-4, or why the numbers differ"

Ours runs in double precision, so that what is compared doesn't hang on a processor's kernels;
theirs ran in single precision, which is what ``relative`` leaves room for.

``source = "hand"`` in a check says that the number was counted by hand or comes from a formula of
the release that was taken out, since the release can't run.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Method
from normscan.registry import card
from normscan.rng import Rng
from tests.golden.fill import fill, images

FOLDER = Path(__file__).parent
STATES = ("exact", "departs", "no code", "not run")


@dataclass(frozen=True)
class Check:
    """One comparison; see the module for the fields."""

    name: str
    run: str
    values: list[float]
    preset: str = "paper"
    arguments: dict[str, Any] = field(default_factory=dict)
    module: str = ""
    shape: list[int] = field(default_factory=list)
    rule: str = "wave"
    item: int | None = None
    at: list[int] | None = None
    phase: str = ""
    player: str = ""
    relative: float = 1e-4
    source: str = "run"
    reason: str = ""


@dataclass(frozen=True)
class Record:
    """A method's parity record; see the module for the fields."""

    id: str
    state: str
    repository: str = ""
    commit: str = ""
    files: list[str] = field(default_factory=list)
    departs: list[str] = field(default_factory=list)
    note: str = ""
    check: list[Check] = field(default_factory=list)


def read(path: Path) -> Record:
    """Return a record."""
    values = tomllib.loads(path.read_text())
    checks = [Check(**c) for c in values.pop("check", [])]
    return Record(path.stem, **values, check=checks)


def read_all() -> dict[str, Record]:
    """Return every record by id."""
    return {p.stem: read(p) for p in sorted(FOLDER.glob("*.toml"))}


@contextmanager
def _undrawn() -> Iterator[None]:
    """Within it no initial weights are drawn, which takes seconds for a large network."""

    def small(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        # Not 0, from which the power iteration of spectral norms can't begin, and within the bounds
        # to which draws are repeated.
        return tensor.fill_(1e-6)

    with patch.object(Tensor, "normal_", small), patch.object(Tensor, "uniform_", small):
        yield


def build(id: str, check: Check) -> Method:
    """Return the method in double precision, with the record's weights, in evaluation mode."""
    dims = len(check.shape) - 2 if check.shape else 2
    channels = check.shape[1] if check.shape else 1
    arguments = {"dims": dims, "channels": channels, **check.arguments}
    known = card(id).arguments(check.preset)
    with _undrawn():
        method = card(id).create(**{**known, **arguments})
    if check.run == "parameters":
        return method
    method.double()
    fill(method, check.rule)
    return method.eval()


def batch_of(check: Check) -> Batch:
    """Return the record's images, all foreground, with one seed each."""
    image = images(*check.shape, rule=check.rule)
    n, _, *spatial = image.shape
    return Batch(
        image, torch.ones(n, 1, *spatial, dtype=torch.bool), Rng(list(range(n))),
        torch.full((n,), 0.5),
    )  # fmt: skip


def _part(method: Method, path: str) -> Any:
    for name in filter(None, path.split(".")):
        method = getattr(method, name)
    return method


def _parameters(method: Method, check: Check) -> Tensor:
    part: nn.Module = _part(method, check.module)
    return torch.tensor([float(sum(p.numel() for p in part.parameters()))], dtype=torch.float64)


def _forward(method: Method, check: Check) -> Any:
    with torch.no_grad():
        return _part(method, check.module)(images(*check.shape, rule=check.rule))


def _map(method: Method, check: Check) -> Any:
    return method.maps(batch_of(check)).map


def _score(method: Method, check: Check) -> Any:
    return method.maps(batch_of(check)).score


def _loss(method: Method, check: Check) -> Any:
    """The sum of the named terms, in training mode, with gradients possible."""
    terms = method.train().loss(batch_of(check), check.phase, check.player)
    return sum(terms.values()).detach().reshape(1)


RUNS: dict[str, Callable[[Method, Check], Any]] = {
    "parameters": _parameters,
    "forward": _forward,
    "map": _map,
    "score": _score,
    "loss": _loss,
}


def ours(id: str, check: Check) -> Tensor:
    """Run ours and return what is compared with ``check.values``, float64."""
    if check.run in RUNS:
        run = RUNS[check.run]
    else:
        module, _, name = check.run.partition(":")
        run = getattr(importlib.import_module(f"tests.golden.{module}"), name)
    output = run(build(id, check), check)
    if check.item is not None:
        output = output[check.item]
    output = output.detach().double()
    if check.at is not None:
        return output.flatten()[check.at]
    if len(check.values) == output.numel():
        return output.flatten()
    return torch.stack([output.mean(), output.std()])
