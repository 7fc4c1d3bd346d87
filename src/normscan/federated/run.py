"""Train one method at several sites and leave a finished detector at each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.errors import ArgumentError, CohortError, NormscanError, OutputError, nearest
from normscan.federated.client import Client
from normscan.io.atomic import check_folder
from normscan.io.values import write_json
from normscan.progress import Progress
from normscan.training.fabric import launch_fabric
from normscan.training.folder import tidied

SUMMARY = "federated.json"


@dataclass(frozen=True)
class Federation:
    """What a federated training did.

    Attributes:
        folders: of the sites' detectors.
        sites: value of the column of each site.
        samples: training samples of each site, its weight in the mean.
        rounds: of training and averaging.
        local_epochs: passes of each site over its samples in a round.
        shared: names of the parameters that were sent.
        parameters: numbers in them.
        local: numbers in the method's other parameters, which stayed at each site.
        sent: bytes that each site sent.
        received: bytes that each site received.
        flower: version of Flower.
    """

    folders: list[str]
    sites: list[str]
    samples: list[int]
    rounds: int
    local_epochs: int
    shared: list[str]
    parameters: int
    local: int
    sent: list[int]
    received: list[int]
    flower: str


def federate(
    method: str,
    cohort: Cohort | str | os.PathLike[str],
    out: str | os.PathLike[str],
    by: str = "site",
    rounds: int = 50,
    local_epochs: int = 5,
    preset: str = "paper",
    seed: int = 0,
    clients: Iterable[str] | None = None,
    device: str = "auto",
    precision: str = "32-true",
    workers: int = 1,
    progress: bool = False,
    **options: Any,
) -> Federation:
    """Train a method at several sites that share parameters and no scans (federated averaging).

    Each value of a column is a site with a detector of its own: its scans, preprocessing, batch-norm
    statistics, closed-form part, quality gate and threshold stay with it. In each round every site
    trains on its healthy scans and sends the parameters that the method shares, all by default,
    and the number of its samples; the weighted mean goes back to all (McMahan et al., AISTATS
    2017). The sites take turns in this process, so this simulates a federation on one machine.

    Args:
        method: id of a method with one player in each phase.
        cohort: a cohort, or the path of its table or folder.
        out: new folder; the detector of site k goes to ``client_<k>``, sites in sorted order.
        by: column of the cohort that names the site.
        rounds: of training and averaging.
        local_epochs: passes of each site over its samples in a round.
        preset: of the method.
        seed: of everything random; site k trains with ``seed`` + k, and all begin with the shared
            parameters of site 0.
        clients: values of the column to take part; all by default.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: of Lightning Fabric.
        workers: processes that prepare scans.
        progress: show progress on stderr.
        options: arguments of the method and options of ``Detector``.

    Raises:
        ArgumentError: Flower is missing, a wrong value, or a method that can't be federated.
        CohortError: no such column or value, or a site lacks healthy scans.
        OutputError: ``out`` exists.
        NormscanError: a site failed; nothing goes on without it.
    """
    for name, count in (("rounds", rounds), ("local_epochs", local_epochs)):
        if count < 1:
            raise ArgumentError(f"{name} is {count}; it must be 1 or more.")
    try:
        import flwr

        from normscan.federated.flower import LocalGrid, client_app, run_rounds
    except ImportError as error:
        raise ArgumentError(
            "federated training needs Flower, which is missing or too old "
            f"({error}): pip install 'normscan[federated]'."
        ) from error
    cohort = cohort if isinstance(cohort, Cohort) else Cohort.read(cohort, seed=seed)
    parts = split_sites(cohort, by, clients)
    sites = list(parts)
    asked = [
        Detector(method, preset=preset, seed=seed + k, calibration="split", **options).asked()
        for k in range(len(sites))
    ]
    if asked[0].card.regime == "zero-shot":
        raise ArgumentError(f"'{method}' trains nothing, so there is nothing to federate.")
    folder = Path(out)
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} exists. Choose another folder or remove it.")
    names = [f"site {k} ({by} {site})" for k, site in enumerate(sites)]
    with contextlib.ExitStack() as stack, Progress(progress) as bar:
        fabric = launch_fabric(device, 1, precision)
        stack.enter_context(tidied(folder))
        members = []
        for k, (site, part) in enumerate(parts.items()):
            own = folder / f"client_{k}"
            stack.enter_context(tidied(own))
            bar.say(f"{names[k]}: preparing")
            with _named(names[k]):
                members.append(Client(site, asked[k], part, own, fabric, workers, bar))
        _check_alike(members, names)
        order = members[0].plan(rounds)
        for member in members:
            member.order = order
        grid = LocalGrid(
            [client_app(member) for member in members], names,
            lambda done: bar.update("rounds", done, rounds * len(members)),
        )  # fmt: skip
        run_rounds(grid, members[0].send(), rounds, local_epochs)
        everything = sum(p.numel() for p in members[0].method.parameters())
        parameters = sum(p.numel() for p in members[0].shared.values())
        result = Federation(
            [str(member.folder) for member in members], sites, [m.samples for m in members],
            rounds, local_epochs, list(members[0].shared), parameters, everything - parameters,
            grid.sent, grid.received, str(flwr.__version__),
        )  # fmt: skip
        said = {"by": by, **asdict(result), "configuration": members[0].state.configuration()}
        said["folders"] = [member.folder.name for member in members]
        write_json(folder / SUMMARY, said)
    return result


def split_sites(cohort: Cohort, by: str, clients: Iterable[str] | None = None) -> dict[str, Cohort]:
    """Return the scans of each value of a column, sorted by the value; test scans are left out.

    Raises:
        CohortError: no such column or value, or scans to learn from have none.
        ArgumentError: ``clients`` is empty.
    """
    learning = cohort.select(cohort.table["split"].isin(["train", "val", "extra"]))
    if by not in learning.table.columns:
        columns = list(learning.table.columns)
        raise CohortError(f"the cohort has no column '{by}'.{nearest(by, columns)}")
    values = learning.table[by].fillna("").astype(str)
    known = sorted(set(values) - {""})
    wanted = known if clients is None else sorted(map(str, clients))
    if not wanted and clients is not None:
        raise ArgumentError("clients is empty: name values of the column, or leave it out.")
    for value in wanted:
        if value not in known:
            raise CohortError(
                f"no scan to learn from has '{value}' in column '{by}'.{nearest(value, known)}"
            )
    nameless = int((values == "").sum())
    if clients is None and (nameless or not known):
        raise CohortError(
            f"{nameless} scans to learn from have nothing in column '{by}'. Fill it, or name the "
            "sites that take part (clients)."
        )
    return {value: learning.select(values == value) for value in wanted}


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the site's name before an error, which stays of its kind."""
    try:
        yield
    except NormscanError as error:
        raise type(error)(f"{name}: {error}") from error


def _check_alike(members: Sequence[Client], names: Sequence[str]) -> None:
    """Refuse sites whose parameters can't be averaged, before anything is trained."""
    shapes = [{n: tuple(p.shape) for n, p in m.shared.items()} for m in members]
    if not shapes[0]:
        raise ArgumentError(
            f"method '{members[0].state.card.id}' has no parameters to share, so there is "
            "nothing to federate."
        )
    for name, other in zip(names[1:], shapes[1:], strict=True):
        if other != shapes[0]:
            raise CohortError(
                f"{name} and {names[0]} build different networks: their scans differ in channels "
                "or axes. Give all sites the same ones."
            )
