"""What a protocol runs: which methods with which settings, on which sets, with which seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normscan import registry
from normscan.benchmark.cell import Job, contents_of
from normscan.benchmark.data import Data, joined, local_sets, prepare_set
from normscan.benchmark.protocol import Protocol, Set
from normscan.benchmark.restorations import INDICES
from normscan.cohort.anomalies import FewAnomalies
from normscan.errors import ArgumentError, NormscanError, OutputError, nearest
from normscan.io.values import plain
from normscan.progress import Progress

BASELINES = ("mean_image", "image_statistics")
# Nothing in them is random, so that one seed says it all.
DETERMINISTIC = (*BASELINES, "hist_threshold_baseline")


@dataclass
class Plan:
    """What is to be run.

    Attributes:
        protocol: the protocol.
        budget: name of the budget.
        methods: ids, baselines included.
        sets: those whose data are there.
        jobs: in the order of running.
        missing: why a set can't be run, by its id.
        given: preset and arguments that the user chose, in words; empty where the budget rules.
    """

    protocol: Protocol
    budget: str
    methods: list[str]
    sets: list[Set]
    jobs: list[Job] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    given: str = ""


def make_plan(
    protocol: Protocol,
    methods: Sequence[str],
    folder: Path,
    data: Data,
    *,
    seeds: int | None = None,
    sets: Sequence[str] = (),
    budget: str | None = None,
    preset: str | None = None,
    arguments: Mapping[str, Any],
    features: str | None = None,
    anomalies: FewAnomalies | None = None,
    device: str = "auto",
    redo: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Plan:
    """Prepare the cohorts and list the jobs; see `run` for the arguments."""
    names = list(dict.fromkeys([*methods, *BASELINES]))
    cards = [registry.card(name) for name in names]
    count = protocol.seeds if seeds is None else seeds
    if count < 1:
        raise ArgumentError(f"seeds is {count}; it must be 1 or more.")
    chosen = protocol.budget if budget is None else budget
    if chosen not in protocol.budgets:
        raise ArgumentError(
            f"the protocol '{protocol.id}' has no budget '{chosen}'."
            f"{nearest(chosen, protocol.budgets)} It has: {', '.join(protocol.budgets)}."
        )
    there = local_sets(protocol, data)
    unknown = [name for name in sets if name not in [s.id for s in there]]
    if unknown:
        known = ", ".join(s.id for s in there)
        raise ArgumentError(f"there is no set '{unknown[0]}' in '{protocol.id}'; it has {known}.")
    if anomalies and protocol.together:
        raise ArgumentError(
            f"the protocol '{protocol.id}' fits one model to several sets: anomalies can't be drawn "
            "for it."
        )
    said = [f"preset {preset}"] if preset else []
    said += [str(anomalies)] if anomalies else []
    said += [f"arguments {json.dumps(plain(dict(arguments)))}"] if arguments else []
    plan = Plan(protocol, chosen, names, [], given=", ".join(said))
    network: dict[str, Any] = {}
    if set(INDICES) & set(protocol.shown):
        network = protocol.features.model_dump() | ({"weights": features} if features else {})
    tables: dict[str, Path] = {}
    for each in there:
        if sets and each.id not in sets:
            continue
        try:
            tables[each.id] = prepare_set(each, data, folder / "sets", redo, progress)
            plan.sets.append(each)
        except OutputError:
            raise
        except NormscanError as error:
            plan.missing[each.id] = str(error)
    for group, table in _groups(plan, tables, folder):
        used = {str(path) for path in (table, *(tables[s.id] for s in group))}
        contents = {path: contents_of(path) for path in used}
        for seed in range(count):
            for card in cards:
                if seed and card.id in DETERMINISTIC:
                    continue
                options, dropped = detector_options(
                    protocol, group[0], chosen, card, preset, arguments
                )
                cells = {s.id: folder / "cells" / s.id / card.id / f"seed{seed}" for s in group}
                run = cells[group[0].id]
                if protocol.together:
                    run = folder / "models" / group[0].group / card.id / f"seed{seed}"
                job = Job(
                    card.id, seed, options, str(table), str(run),
                    {id: str(path) for id, path in cells.items()},
                    {s.id: str(tables[s.id]) for s in group},
                    protocol.region, protocol.variants, network, device, dropped, command,
                    vars(anomalies) if anomalies else {}, contents,
                )  # fmt: skip
                plan.jobs.append(job)
    return plan


def _groups(
    plan: Plan, tables: Mapping[str, Path], folder: Path
) -> Iterator[tuple[list[Set], Path]]:
    """Yield the sets that share a model, with the table to fit it on."""
    if not plan.protocol.together:
        for each in plan.sets:
            yield [each], tables[each.id]
        return
    from normscan.cohort import Cohort

    for name in dict.fromkeys(s.group for s in plan.sets):
        group = [s for s in plan.sets if s.group == name]
        lost = [s.id for s in plan.protocol.expanded() if s.group == name and s.id in plan.missing]
        if lost:  # a model for some of the classes would be another protocol
            for each in group:
                plan.missing[each.id] = f"shares a model with {', '.join(lost)}, which aren't there"
                plan.sets.remove(each)
            continue
        cohorts = [Cohort.read(tables[s.id]) for s in group]
        healthy = [c.select(c.table["split"].isin(["train", "val"])) for c in cohorts]
        whole = joined(healthy, name, [s.id for s in group])
        yield group, whole.write(folder / "sets" / f"together_{name}.csv")


def detector_options(
    protocol: Protocol,
    each: Set,
    budget: str,
    card: registry.Card,
    preset: str | None,
    arguments: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """Return the options of ``Detector`` for a method on a set, and what it can't take.

    A baseline without the wanted preset takes the budget's: it stands beside every method.

    The later wins: the budget's arguments, the protocol's, the set's, those for the method, and
    the user's.

    Raises:
        ArgumentError: an argument for a single method that it doesn't have.
    """
    allowed, methods = protocol.budgets[budget], registry.load_all()
    if preset is None or (card.id in BASELINES and preset not in card.presets):
        preset = next((p for p in allowed.presets if p in card.presets), "paper")
    common = {k: v for k, v in arguments.items() if k not in methods}
    known = {name for each_card in methods.values() for name in each_card.defaults}
    for name in common:
        if name not in known:
            raise ArgumentError(f"no method has an argument '{name}'.{nearest(name, known)}")
    chosen: dict[str, Any] = {}
    dropped: list[str] = []
    layers = [allowed.arguments, protocol.arguments, each.arguments, each.budgets.get(budget, {})]
    for layer in (*layers, allowed.methods.get(card.id, {}), common):
        chosen |= {k: v for k, v in layer.items() if k in card.defaults}
        dropped += [k for k in layer if k not in card.defaults and k not in dropped]
    chosen |= arguments.get(card.id) or {}
    defaults = card.arguments(preset)
    asked = card.arguments(preset, **chosen)
    # Only what differs from the preset is an option: `channels` and the like are the cohort's.
    options = {k: v for k, v in asked.items() if k in chosen and v != defaults[k]}
    return plain(
        {
            "preset": preset,
            **options,
            "preprocess": {**protocol.preprocess, **each.preprocess} or None,
            "postprocess": protocol.postprocess,
            "reduction": protocol.reduction,
            "fpr": protocol.fpr,
            "pixel_fpr": protocol.pixel_fpr,
        }
    ), dropped
