"""The state of a detector: what was asked for, what its cohort settled, what it has learnt."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan import registry
from normscan.cohort import Cohort, CohortRow, Division
from normscan.cohort.anomalies import learnt_from
from normscan.cohort.division import AUXILIARY, CALIBRATION, content_of
from normscan.decide import Calibration, ComponentThreshold, ScanThreshold
from normscan.decide.calibration import SPLIT
from normscan.detector.ranges import check_ranges, check_seed
from normscan.errors import ArgumentError
from normscan.io.values import plain
from normscan.preprocess import Preprocess
from normscan.preprocess.samples import Preparation
from normscan.preprocess.settings import build_preprocess, expanded
from normscan.quality import Gate
from normscan.registry import Card
from normscan.scores.places import Places
from normscan.scores.postprocess import parse
from normscan.scores.reductions import check_reduction
from normscan.version import __version__

if TYPE_CHECKING:
    from normscan.detector.graph import Graph
    from normscan.methods.base import Method
    from normscan.methods.uses import Use

_DOUBTS = {
    "trained": "trained the detector: figures on them are too good. Healthy scans that it never saw "
    "would show the true ones.",
    "calibrated": "set its threshold: their rate of false alarms is the wanted one by construction. "
    "Healthy scans that it never saw would show the true one.",
}


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


EVIDENCE = "evidence"  # healthy scans and planted lesions choose


@dataclass(eq=False, repr=False)
class State:
    """A detector as plain values; see ``Detector`` for those that a user gives.

    Attributes:
        card: of the method.
        preset: of the method.
        arguments: of the method, all of them; the cohort settles ``dims`` and ``channels``.
        preprocess: of scans; steps that learn have learnt after fitting.
        postprocess: chain of steps on the map.
        reduction: from map to score; ``evidence`` until planted lesions have chosen.
        fpr: false-positive rate of the decision.
        pixel_fpr: mean fraction of a healthy scan's pixels above the pixel threshold.
        patch: side of patches, or None.
        seed: of everything random.
        wrappers: around the method, the innermost first.
        calibration: which healthy scans set the threshold; after fitting, which did.
        cache: keep the results of preprocessing steps on disk.
        gated: learn a quality gate.
        false_components: mean number of components of a healthy scan above the pixel threshold, at
            most; None to bound their share of pixels alone.
        replaces: the reduction goes before a score that the method gives by itself.
        places: what a reduction ``+place`` compares the map with, or None.
        channels: that it was trained on.
        method: built, and after fitting trained.
        scan_threshold: decision on scans.
        pixel_threshold: of the map.
        gate: what a scan is compared with before it is scored, or None.
        training: what it was trained on and how long.
        fingerprint: SHA-256 of the stored weights, or an empty string.
        division: of the scans that it was fitted with; None where an earlier version fitted it.
        filled: channels that scans may lack, since it was calibrated without them.
        graph: runs in place of the method, where it was read from an exported file.
    """

    card: Card
    preset: str
    arguments: dict[str, Any]
    preprocess: Preprocess
    postprocess: tuple[str, ...]
    reduction: str
    fpr: float
    pixel_fpr: float
    patch: int | None
    seed: int
    wrappers: tuple[str, ...]
    calibration: Calibration = SPLIT
    cache: bool = True
    gated: bool = True
    false_components: float | None = None
    replaces: bool = False
    places: Places | None = None
    channels: tuple[str, ...] = ()
    method: Method | None = None
    scan_threshold: ScanThreshold | None = None
    pixel_threshold: float | None = None
    gate: Gate | None = None
    training: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    division: Division | None = None
    filled: tuple[str, ...] = ()
    graph: Graph | None = None

    @property
    def fitted(self) -> bool:
        """Whether there is something to predict with."""
        return self.method is not None or self.graph is not None

    @property
    def uses(self) -> Mapping[str, Use]:
        """What it uses of that which may stand beside a scan, by name."""
        method = self.graph or self.method
        return {} if method is None else method.uses

    @property
    def further(self) -> tuple[tuple[str, int], ...]:
        """Name and channels of each further image of a case that it looks at."""
        known = self.arguments.get("further", ()) if "further" in self.uses else ()
        return tuple((str(name), int(channels)) for name, channels in known)

    def changed(self, **changes: Any) -> State:
        """Return the state with other values; it shares the rest."""
        return State(**{f.name: getattr(self, f.name) for f in fields(State)} | changes)

    def configuration(self) -> dict[str, Any]:
        """What was asked for, as plain values; a run folder belongs to one configuration."""
        configuration: dict[str, Any] = plain(
            {
                "method": self.card.id,
                "preset": self.preset,
                "arguments": self.arguments,
                "preprocess": self.preprocess.to_dict(),
                "postprocess": self.postprocess,
                "reduction": self.reduction,
                "replaces": self.replaces,
                "fpr": self.fpr,
                "pixel_fpr": self.pixel_fpr,
                "false_components": self.false_components,
                "patch": self.patch,
                "wrappers": self.wrappers,
                "calibration": vars(self.calibration),
                "seed": self.seed,
            }
        )
        return configuration

    @property
    def decided_by(self) -> str:
        """Whose scores set the threshold: ``split``, ``cross``, or a cohort from ``elsewhere``."""
        return "elsewhere" if self.training.get("elsewhere") else self.calibration.kind

    @property
    def may_stay_open(self) -> bool:
        """Whether it may take no decision: its regime allows that, or one subject was all there was."""
        return self.card.may_stay_open or bool(self.training.get("alone"))

    def read_cohort(
        self, path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
    ) -> Cohort:
        """Read a cohort; where it gives no split, the one that the detector was fitted with holds.

        Anomalies that were drawn for it from test, and what was set aside with them, are left out.
        """
        cohort = Cohort.read(path, root=root, seed=self.seed, division=self.division)
        if not self.training.get("anomalies") or self.division is None:
            return cohort
        return cohort.select([not known for known in learnt_from(cohort, self.division)])

    def role_of(self, split: str) -> str:
        """What the scans of a split were for the detector: trained, calibrated or nothing."""
        drawn = set(self.training.get("samples", ())) - {"train", "val", AUXILIARY}
        learnt = {"train", AUXILIARY} | ({"extra"} if drawn else set())
        if self.calibration.kind == "cross":
            learnt |= {"val"}
        if self.card.regime == "zero-shot":
            learnt = set()
        here = self.decided_by != "elsewhere"
        if split in learnt:
            return "trained"
        return "calibrated" if split == CALIBRATION or (split == "val" and here) else ""

    def seen(self, paths: Iterable[Path]) -> str:
        """What a scan was for the detector, by the content of its files: see ``role_of``."""
        return "" if self.division is None else self.known(content_of(paths))

    def known(self, content: str) -> str:
        """What a scan was for the detector, by the hashes of its files: see ``CohortRow.key``."""
        member = (
            None if self.division is None else self.division.find(content, partly=bool(self.filled))
        )
        return self.role_of(member.split) if member else ""

    def doubts(
        self, rows: Sequence[CohortRow], split: str, content: Sequence[str] | None = None
    ) -> tuple[str, ...]:
        """Say which scans trained or calibrated the detector, so that figures on them are too good.

        Args:
            rows: scans to be scored.
            split: that they lie in; all that is known of a detector without a division.
            content: hashes of the files of each, where they were read already.
        """
        if content is not None:
            roles = [self.known(hashes) for hashes in content]
        else:
            roles = [self.seen(row.paths) for row in rows]
        if self.division is None:
            roles = [self.role_of(split)] * len(rows)
        notes = []
        for role, told in _DOUBTS.items():
            names = [row.scan for row, its in zip(rows, roles, strict=True) if its == role]
            if names:
                whose = "" if len(names) == len(rows) else f" ({_some(names)})"
                notes.append(f"{len(names)} of these {len(rows)} scans{whose} {told}")
        members = [] if self.division is None else self.division.members
        known = {m.subject for m in members if self.role_of(m.split)}
        new = {row.subject for row, role in zip(rows, roles, strict=True) if not role}
        if people := sorted(new & known):
            notes.append(
                f"{len(people)} subjects ({_some(people)}) have the name of one that trained or "
                "calibrated the detector. If they are the same, figures on them are too good."
            )
        return tuple(notes)

    def left_out(self) -> tuple[str, ...]:
        """Say which healthy scans were left out of the fit by hand, where some were."""
        excluded = self.training.get("excluded")
        if not excluded:
            return ()
        named = "; ".join(f"{entry['scan']}: {entry['reason']}" for entry in excluded)
        return (
            f"{len(excluded)} healthy scan{' was' if len(excluded) == 1 else 's were'} left out of "
            f"the fit by hand ({named}). The rate of false alarms is that of scans like those kept.",
        )

    def out_of_date(self) -> tuple[str, ...]:
        """Say that scans joined after the thresholds were set, where some did."""
        return (str(self.training["calibration"]),) if self.training.get("stale") else ()

    @property
    def usual_reduction(self) -> str:
        """The reduction of the method and its preset."""
        return str(self.card.preset(self.preset).get("reduction", self.card.reduction))

    @property
    def usual_scaling(self) -> str:
        """The scaling of the method and its preset."""
        layers = (self.card.preprocess, self.card.preset(self.preset).get("preprocess"))
        settings = {k: v for layer in layers for k, v in expanded(layer or {}).items()}
        return str(settings.get("scaling", "auto"))

    @property
    def pixel_rule(self) -> str:
        """What the pixel threshold bounds, in words."""
        text = f"at most {self.pixel_fpr:.3g} of the pixels of a healthy scan lie above on average"
        if self.false_components is not None:
            text += f", in at most {self.false_components:.3g} connected components"
        return text

    @property
    def pixel_shares(self) -> list[list[float]]:
        """Scores of the map, rising, and the share of healthy pixels above each."""
        return list((self.training.get("pixel_threshold") or {}).get("shares", ()))

    def preparation(self) -> Preparation:
        """What prepares its scans, in any process."""
        return Preparation(
            self.preprocess, self.arguments["dims"], self.channels, self.cache,
            targets=self.arguments.get("targets"), filled=self.filled, further=self.further or None,
        )  # fmt: skip

    def provenance(self) -> dict[str, Any]:
        """Who made a finding."""
        return {
            "method": self.card.id,
            "preset": self.preset,
            "detector_sha256": self.fingerprint,
            "normscan": __version__,
            "seed": self.seed,
        }


def ask(
    method: str,
    *,
    preset: str = "paper",
    preprocess: dict[str, Any] | None = None,
    postprocess: Iterable[str] | None = None,
    reduction: str | None = None,
    fpr: float = 0.05,
    pixel_fpr: float = 0.05,
    patch: int | None = None,
    seed: int = 0,
    cache: bool = True,
    gate: bool = True,
    wrappers: Iterable[str] | None = None,
    calibration: Calibration = SPLIT,
    false_components: float | None = None,
    arguments: dict[str, Any] | None = None,
) -> State:
    """Return an unfitted state: the preset's values, and over them what is given.

    Raises:
        ArgumentError: unknown method, preset, argument, step or reduction, or a wrong value.
    """
    card = registry.card(method)
    chosen = card.preset(preset)
    values = card.arguments(preset, **(arguments or {}))
    settings = {"size": values["size"]}
    for layer in (card.preprocess, chosen.get("preprocess"), preprocess):
        settings |= expanded(layer or {})
    prepared = build_preprocess(settings)
    chain = postprocess if postprocess is not None else chosen.get("postprocess")
    chain = tuple(card.postprocess if chain is None else chain)
    parse(chain)
    replaces = reduction is not None
    reduction = reduction or str(chosen.get("reduction", card.reduction))
    reduction = reduction if reduction == EVIDENCE else check_reduction(reduction)
    for name, rate in (("fpr", fpr), ("pixel_fpr", pixel_fpr)):
        if not 0 < rate < 1:
            raise ArgumentError(f"{name} is {rate}; it must lie between 0 and 1.")
    if false_components is not None:
        ComponentThreshold(false_components)
    from normscan.wrappers import check_wrappers  # torch

    if "size" in (arguments or {}) and prepared.size != values["size"]:
        raise ArgumentError(
            f"size is {values['size']}, preprocess.size {prepared.size}: a method works on what scans are "
            "brought to. Give one of the two."
        )
    around = check_wrappers(wrappers if wrappers is not None else chosen.get("wrappers", ()))
    if patch is not None and not 1 <= patch <= prepared.size:
        most = f"1..{prepared.size}, the size that scans are brought to"
        raise ArgumentError(f"patch is {patch}; it must lie in {most} (preprocess.size).")
    values["size"] = patch or prepared.size
    check_ranges(card, values)
    check_seed(seed)
    if values.get("dims") and values["dims"] not in card.dims:
        axes = " or ".join(map(str, card.dims))
        raise ArgumentError(
            f"method '{method}' works on {axes} spatial axes, not dims={values['dims']}."
        )
    return State(
        card, preset, values, prepared, chain, reduction, fpr, pixel_fpr, patch, seed, around,
        calibration, cache, gate, false_components, replaces,
    )  # fmt: skip
