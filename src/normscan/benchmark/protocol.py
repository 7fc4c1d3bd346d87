"""A protocol as data: which scans, which preparation, which budget, which figures.

Each file of ``protocols/*.toml`` is one protocol; its name is the id. The fields are those of
``Protocol``. A set is a test bed with a figure of its own; it is put together from parts::

    [[sets]]
    id = "rsna"
    title = "RSNA"
    parts = [{ recipe = "rsna", split = "medianomaly", split_file = "data.json" }]

A part is one of: a ``recipe`` of ``normscan datasets`` (with ``split``, ``split_file``, ``only``,
``channels`` as there), a ``folder`` that `Cohort.read` understands (a benchmark's own copy; ``get``
says where it comes from), ``phantom`` options, or ``local`` (what the user names).
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from normscan.errors import ArgumentError, CohortError, nearest
from normscan.io.values import inherited

LEVELS = ("image", "pixel")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(_Model):
    """Where scans of a set come from.

    Attributes:
        recipe: id of a public data set.
        split: its split of the literature.
        split_file: id list for the split, in the data set's folder.
        only: rows to keep, such as ``category=bottle``.
        channels: of a set with one file a channel.
        fractions: healthy subjects for train, val and test, where no split says it.
        folder: name of a cohort below the data's root.
        get: how to get that folder.
        phantom: options of ``normscan phantom``.
        local: cohorts that the user names.
        slices: first slice and the one after the last, to be taken as scans.
        take: parts of the split that are kept; all by default.
    """

    recipe: str = ""
    split: str | None = None
    split_file: str = ""
    only: str | None = None
    channels: list[str] = []
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    folder: str = ""
    get: str = ""
    phantom: dict[str, Any] | None = None
    local: bool = False
    slices: tuple[int, int] | None = None
    take: list[Literal["train", "val", "test", "extra"]] = []

    @model_validator(mode="after")
    def _one_source(self) -> Part:
        given = [bool(self.recipe), bool(self.folder), self.phantom is not None, self.local]
        if sum(given) != 1:
            raise ValueError("a part is one of recipe, folder, phantom or local")
        return self


class Set(_Model):
    """A test bed.

    Attributes:
        id: fit for a folder name.
        title: for tables.
        parts: where its scans come from.
        group: sets of one group are averaged, and share a model in a protocol with ``together``.
        categories: the set stands for one set per category of its recipe.
        arguments: of the methods that have them.
        budgets: the same for one budget.
        preprocess: changes to the protocol's.
    """

    id: str
    title: str = ""
    parts: list[Part]
    group: str = ""
    categories: list[str] = []
    arguments: dict[str, Any] = {}
    budgets: dict[str, dict[str, Any]] = {}
    preprocess: dict[str, Any] = {}


class Budget(_Model):
    """How long methods train.

    Attributes:
        presets: the first that a method has is taken.
        arguments: of the methods that have them.
        methods: arguments of single methods.
    """

    presets: list[str] = ["paper"]
    arguments: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}


class Features(_Model):
    """The frozen network whose features RQI and AHI compare.

    Attributes:
        name: timm name with its weight tag.
        taps: names of its stages.
        weights: ``hub``, or the path of a file.
    """

    name: str = "resnet18.tv_in1k"
    taps: list[str] = ["layer1", "layer2", "layer3"]
    weights: str = "hub"


class Protocol(_Model):
    """Everything that makes figures comparable; see the module's description of sets.

    Attributes:
        title: one line.
        source: article and code.
        regime: what the methods may see, in words.
        together: one model for all sets of a group.
        mean: also rank by the mean over the sets of a group.
        sets: the test beds.
        preprocess: settings of ``Preprocess``.
        arguments: common to all methods that have them, whatever the budget.
        budgets: by name.
        budget: the one taken by default.
        headline: the metric that ranks, by level.
        metrics: shown beside it; of restorations also ``rqi``, ``ahi`` and ``caci``.
        features: of ``rqi`` and ``ahi``.
        variants: functions of ``normscan.metrics.variants`` to compute as well.
        fpr: share of healthy scans that may be flagged.
        pixel_fpr: share of healthy pixels that may be marked.
        region: pixels that count.
        postprocess: chain instead of each method's own.
        reduction: from map to score instead of each method's own.
        seeds: number of seeds.
        threshold: the rule in words.
        notes: departures from the published protocol, openly.
        pitfalls: what to know before comparing.
    """

    id: str
    title: str
    source: str
    regime: str = "healthy training scans only, one model for each set"
    together: bool = False
    mean: bool = False
    sets: list[Set]
    preprocess: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    budgets: dict[str, Budget]
    budget: str
    headline: dict[Literal["image", "pixel"], str]
    metrics: list[str] = []
    features: Features = Features()
    variants: list[str] = []
    fpr: float = 0.05
    pixel_fpr: float = 0.05
    region: Literal["whole", "foreground"] = "whole"
    postprocess: list[str] | None = None
    reduction: str | None = None
    seeds: int = 3
    threshold: str = "quantile of the scores of healthy validation scans"
    notes: list[str] = []
    pitfalls: list[str] = []

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if self.budget not in self.budgets:
            raise ValueError(f"the budget '{self.budget}' isn't among {list(self.budgets)}")
        ids = [s.id for s in self.expanded()]
        if len(set(ids)) < len(ids):
            raise ValueError("two sets have the same id")
        return self

    @property
    def shown(self) -> list[str]:
        """All metrics of the table in order, the headlines first."""
        return list(dict.fromkeys([*self.headline.values(), *self.metrics, *self.variants]))

    def expanded(self) -> list[Set]:
        """Return the sets, one for each category where a set stands for several."""
        sets: list[Set] = []
        for given in self.sets:
            if not given.categories:
                sets.append(given)
            for name in given.categories:
                parts = [p.model_copy(update={"only": f"category={name}"}) for p in given.parts]
                new = {"id": f"{given.id}_{name}", "title": f"{given.title}, {name}"}
                more = {"parts": parts, "categories": [], "group": given.group or given.id}
                sets.append(given.model_copy(update=new | more))
        return sets

    def text(self) -> str:
        """Return the protocol as a page for people."""
        lines = [f"{self.id}: {self.title}", f"source     {self.source}"]
        together = "; one model for all sets of a group" if self.together else ""
        lines += [f"regime     {self.regime}{together}", "", "sets"]
        for each in self.sets:
            parts = " + ".join(_part_text(p) for p in each.parts)
            many = f" (x {len(each.categories)} categories)" if each.categories else ""
            lines.append(f"  {each.id:<18}{each.title or each.id}{many}: {parts}")
        chain = "each method's own" if self.postprocess is None else self.postprocess or "none"
        lines += [
            "",
            f"prepare    {self.preprocess or 'defaults'}",
            *([f"arguments  {self.arguments}"] if self.arguments else []),
        ]
        for name, budget in self.budgets.items():
            default = " (default)" if name == self.budget else ""
            said = f"preset {' or '.join(budget.presets)}{default} {budget.arguments or ''}"
            lines.append(f"budget     {name}: {said.rstrip()}")
            lines += [f"           {m}: {changes}" for m, changes in budget.methods.items()]
        lines += [
            f"after      post-processing {chain}; score: {self.reduction or 'each method its own'}",
            f"threshold  {self.threshold}; {self.fpr:.0%} of scans, {self.pixel_fpr:.0%} of pixels",
            f"ranked by  {', '.join(f'{k}: {v}' for k, v in self.headline.items())}",
            f"metrics    {', '.join(self.shown)}; pixels of the {self.region} image",
            f"seeds      {self.seeds}",
            "",
            *(f"departs    {note}" for note in self.notes),
            *(f"pitfall    {note}" for note in self.pitfalls),
        ]
        return "\n".join(lines).rstrip()


def _part_text(part: Part) -> str:
    if part.local:
        return "the cohorts named with --data"
    text = part.recipe or part.folder or f"phantom {part.phantom}"
    for name in ("split", "only", "channels", "slices", "take"):
        value = getattr(part, name)
        text += f" {name} {value}" if value else ""
    return text


def load(id: str) -> Protocol:
    """Return a protocol.

    Raises:
        ArgumentError: no such protocol; the nearest id is named.
        CohortError: its file is wrong.
    """
    known = protocols()
    if id not in known:
        raise ArgumentError(
            f"there is no protocol '{id}'.{nearest(id, known)} `normscan benchmark list` lists them."
        )
    return known[id]


@cache
def protocols() -> dict[str, Protocol]:
    """Return the shipped protocols by id."""
    folder = files("normscan.benchmark") / "protocols"
    raw = {
        file.name.removesuffix(".toml"): tomllib.loads(file.read_text("utf-8"))
        for file in sorted(folder.iterdir(), key=lambda f: f.name)
        if file.name.endswith(".toml")
    }
    return {id: parse(id, raw) for id in raw}


def parse(id: str, raw: dict[str, dict[str, Any]]) -> Protocol:
    """Check one protocol of several and fill in what it ``inherits``.

    Raises:
        CohortError: an unknown or missing field, or a wrong value; the message names it.
    """
    table = inherited(id, raw, "protocol")
    try:
        return Protocol(**table | {"id": id})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise CohortError(f"protocol {id}: {where}: {first['msg']}.") from error
