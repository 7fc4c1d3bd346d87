"""The command ``normscan benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from normscan.cli.spelling import command_line
from normscan.errors import ArgumentError


def benchmark(
    protocol: str = "list",
    methods: str | None = None,
    data: str | None = None,
    out: str | None = None,
    seeds: int | None = None,
    sets: str | None = None,
    budget: str | None = None,
    preset: str | None = None,
    arguments: dict[str, Any] | None = None,
    features: str | None = None,
    anomalies: int = 0,
    anomaly_seed: int = 0,
    anomaly_class: str = "",
    device: str = "auto",
    workers: int = 1,
    threads: int = 1,
    redo: bool = False,
    retry: bool = False,
    show: bool = False,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> None:
    """Compare methods under a protocol: normscan benchmark PROTOCOL --methods a,b --data ...

    Args:
        protocol: id of the protocol; `list` lists them.
        methods: ids, separated by commas; the baselines mean_image and image_statistics are added.
        data: ID=PATH of data sets and folders that hold them by id, separated by commas; for the
            protocol local, your cohorts (PATH or NAME=PATH).
        out: folder for cells and tables; runs/benchmark/PROTOCOL by default. The same command goes
            on where it stopped.
        seeds: number of seeds; the protocol's by default.
        sets: only these sets, separated by commas.
        budget: of the protocol, such as laptop or paper.
        preset: of all methods, instead of the budget's: paper, code, laptop, ...
        arguments: of all methods that have them, and of single ones, such as
            '{"steps": 200, "dae": {"noise_std": 0.3}}'.
        features: file with the weights of the network behind the indices RQI and AHI, where the
            protocol asks for them; from the Hugging Face hub by default.
        anomalies: labelled anomalies of each set to learn from, each of another subject, of which
            nothing is tested; the same for all methods and seeds.
        anomaly_seed: of their draw.
        anomaly_class: COLUMN=VALUE, the only class of anomalies that is drawn; none of it is tested.
        device: auto, cpu, cuda, ...
        workers: cells at a time, each a process of its own.
        threads: of each process.
        redo: run cells of other settings, and failed ones, again.
        retry: try failed cells again.
        show: print the protocol and run nothing.
        engine: local, or ray: the cells go to workers of Ray, on one machine or on those of a
            cluster whose folders are the same.
        address: of a running cluster of Ray, auto for this machine's; by default one is started here.
    """
    from normscan.benchmark import load, protocols, run
    from normscan.benchmark.data import Data
    from normscan.benchmark.write import level_table
    from normscan.cohort.anomalies import FewAnomalies

    if protocol == "list":
        for id, each in protocols().items():
            count = len(each.expanded())
            print(f"{id:<20}{count:>3} set{'s' if count > 1 else ' '}  {each.title}")
        return
    chosen = load(protocol)
    if show:
        print(chosen.text())
        return
    names = [name.strip() for name in (methods or "").split(",") if name.strip()]
    if not names:
        raise ArgumentError(
            f"name methods: normscan benchmark {protocol} --methods dae,vae. "
            "`normscan methods` lists them."
        )
    if workers < 1:
        raise ArgumentError(f"workers is {workers}; it must be 1 or more.")
    few = None
    if anomalies or anomaly_class:
        few = FewAnomalies(anomalies, anomaly_seed, anomaly_class)
    folder = Path(out or f"runs/benchmark/{protocol}")
    ranking = run(
        chosen, names, folder, data=Data.parse(data), seeds=seeds,
        sets=[s.strip() for s in (sets or "").split(",") if s.strip()], budget=budget,
        preset=preset, arguments=arguments, features=features, anomalies=few, device=device, workers=workers,
        threads=threads, redo=redo, retry=retry, progress=True,
        engine=engine, address=address,
        command=command_line(),
    )  # fmt: skip
    failed = 0
    for entry in ranking["sets"].values():
        failed += len(entry["failed"])
        for level, part in entry["levels"].items():
            head, rows = level_table(ranking, part)
            print(f"\n{entry['title']}, {level} level: {head[3]}")
            for row in rows:
                print(f"  {row[0]:>3}  {row[1]:<26}{row[3]:<36}{row[4]}")
        for each in entry["failed"]:
            print(f"  failed: {each['method']}, seed {each['seed']}: {each['reason']}")
    if ranking["missing"]:
        print(f"\nnot run for want of data: {', '.join(ranking['missing'])}; see the table")
    if failed:
        print(f"{failed} cells failed; --retry tries them again")
    print(
        f"\ntable:  {folder / 'table.md'} (.csv, .tex, ranking.json)\npage:   {folder / 'table.html'}"
    )
