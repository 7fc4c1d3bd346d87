"""What the command line does; each function is a sub-command and its signature the options."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from normscan.cli.assistant.commands import mcp as mcp
from normscan.cli.assistant.commands import skill as skill
from normscan.cli.benchmark import benchmark as benchmark
from normscan.cli.beside import others, set_beside
from normscan.cli.calibrate import calibrate as calibrate
from normscan.cli.calibrate import merge as merge
from normscan.cli.calibrate import update as update
from normscan.cli.check import check as check
from normscan.cli.data import bids as bids
from normscan.cli.data import cohort as cohort
from normscan.cli.data import preprocess as preprocess
from normscan.cli.data import steps as steps
from normscan.cli.data import tiles as tiles
from normscan.cli.datasets import datasets as datasets
from normscan.cli.diagnostics import pitfalls as pitfalls
from normscan.cli.export import export as export
from normscan.cli.federated import federate as federate
from normscan.cli.hub import pull as pull
from normscan.cli.hub import push as push
from normscan.cli.mood import mood as mood
from normscan.cli.node import node as node
from normscan.cli.predict import predict as predict
from normscan.cli.regions import regions as regions
from normscan.cli.sign import sign as sign
from normscan.cli.sign import verify as verify
from normscan.cli.spelling import command_line
from normscan.cli.statistics import compare as compare
from normscan.cli.statistics import subgroups as subgroups
from normscan.cli.synthesis import synthesise as synthesise
from normscan.cli.synthesis import tasks as tasks
from normscan.cli.tune import tune as tune
from normscan.cli.view import view as view
from normscan.cohort import Cohort
from normscan.errors import OutputError
from normscan.parallel import use_threads
from normscan.progress import Progress


def fit(
    method: str,
    out: str,
    cohort: str | None = None,
    root: str | None = None,
    preset: str = "paper",
    preprocess: dict[str, Any] | None = None,
    postprocess: list[str] | None = None,
    reduction: str | None = None,
    fpr: float = 0.05,
    pixel_fpr: float = 0.05,
    false_components: float | None = None,
    patch: int | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    precision: str = "32-true",
    strategy: Literal["ddp", "fsdp"] = "ddp",
    workers: int = 1,
    resume: bool = False,
    gate: bool = True,
    wrappers: list[str] | None = None,
    auxiliary: str | None = None,
    anomalies: int = 0,
    anomaly_seed: int = 0,
    anomaly_class: str = "",
    calibration: Literal["auto", "split", "cross"] = "auto",
    folds: int = 5,
    refit: bool = False,
    trim: int = 0,
    exclude: list[str] | None = None,
    threads: int | None = None,
    logger: Literal["tensorboard", "mlflow", "wandb"] | None = None,
    arguments: dict[str, Any] | None = None,
) -> None:
    """Train a method on the healthy scans of a cohort.

    Args:
        method: id of the method.
        out: run folder, new; log, checkpoint and detector go there.
        cohort: table (CSV, TSV, Parquet) or folder; a zero-shot method needs none, and takes
            decisions only with healthy scans.
        root: folder of the table's relative paths.
        preset: paper (the article), code (its released code), laptop (minutes on two cores), ...
        preprocess: settings to change, such as '{"preset": "brain-mri", "size": 128}' or
            '{"steps": ["n4"], "crop": "none"}'; `normscan steps` lists presets and steps.
        postprocess: chain such as '["erode=3", "median=5"]' instead of the method's own.
        reduction: from map to score instead of the method's own, such as top_1_percent or max+inner;
            evidence lets lesions that are planted into healthy scans choose.
        fpr: false-positive rate of the decision on healthy validation scans.
        pixel_fpr: share of a healthy scan's pixels above the pixel threshold.
        false_components: mean number of connected components of a healthy scan above it, such as 1;
            bounded beside the share of pixels where it is given.
        patch: side of patches to train on and to slide over scans.
        fractions: healthy subjects for train, val and test, where the cohort gives no split.
        seed: seed of the split, the weights and everything else that is random.
        device: auto, cpu, cuda, ...
        devices: number of processes, on each machine.
        nodes: number of machines, on which torchrun or srun starts the processes.
        precision: 32-true, bf16-mixed, 16-mixed, ...
        strategy: of several processes: each holds the whole network (ddp), or a part of it (fsdp).
        workers: processes that prepare scans.
        resume: go on with the run in the folder.
        gate: learn a quality gate, which refuses scans of another kind than the training scans.
        wrappers: what is put around the method, such as '["ensemble=3"]' or '["monte_carlo=20"]'.
        auxiliary: table or folder of a second cohort, for methods that learn from two domains.
        anomalies: labelled anomalies to learn from, each of another subject, of which nothing is
            tested; drawn from extra where it has some, else from test.
        anomaly_seed: of their draw.
        anomaly_class: COLUMN=VALUE, the only class of anomalies that is drawn (the hard setting);
            none of it is tested.
        calibration: healthy scans that set the threshold. split takes those of val; cross all, each
            scored by a detector that didn't see its subject, so the method is fitted as often as
            there are folds; auto takes a split where val has enough subjects for fpr (39 for 5 %).
        folds: parts of the healthy subjects with cross.
        refit: with cross, keep one detector fitted to all healthy scans; else the folds' together.
        trim: leave so many of the highest healthy subjects out of the rank that sets the threshold;
            the wanted rate is then not guaranteed.
        exclude: a healthy scan to leave out and why, ID=REASON, which is recorded with the detector;
            given once for each, or a table with the columns scan and reason.
        threads: of the arithmetic; by default the cores that this process may use.
        logger: tensorboard, mlflow or wandb, which gets what log.jsonl gets.
        arguments: of the method.
    """
    from torch import cuda

    from normscan.detector import Detector
    from normscan.detector.review import PAGE
    from normscan.tracking import amounts, check_logger, tracked
    from normscan.training.fabric import check_machine
    from normscan.training.folder import DETECTOR, check_run, first_process

    use_threads(threads)
    detector = Detector(
        method, preset=preset, preprocess=preprocess, postprocess=postprocess, reduction=reduction,
        fpr=fpr, pixel_fpr=pixel_fpr, false_components=false_components, patch=patch, seed=seed,
        gate=gate,
        wrappers=wrappers, calibration=calibration, folds=folds, refit=refit, trim=trim,
        **(arguments or {}),
    )  # fmt: skip
    bar = Progress()
    # Before any file of the cohort is opened.
    check_run(Path(out), resume)
    check_machine(device, devices, precision, nodes, strategy)
    check_logger(logger)
    finished = resume and (Path(out) / DETECTOR).exists()
    table = None
    if cohort is not None:
        table = Cohort.read(cohort, root=root, seed=seed, fractions=fractions)
        if anomalies or anomaly_class:
            table = table.with_anomalies(anomalies, anomaly_seed, anomaly_class)
    if table is not None and first_process():
        bar.say(str(table.summary(bar.track)))
        trained = any(detector.arguments.get(name) for name in ("steps", "epochs"))
        if (
            trained
            and preset in ("paper", "code")
            and device in ("auto", "cpu")
            and not cuda.is_available()
        ):
            bar.say(
                f"preset {preset} is the article's size and may take days without a GPU; "
                "--preset laptop takes minutes"
            )
    # Of several processes the first one logs.
    with tracked(logger if first_process() else None, out) as tracker:
        detector.fit(
            table,
            out,
            device=device,
            devices=devices,
            nodes=nodes,
            precision=precision,
            strategy=strategy,
            workers=workers,
            resume=resume,
            progress=True,
            auxiliary=auxiliary,
            exclude=exclude,
        )
        if tracker is not None:
            tracker.results(amounts(detector.training))
    if "calibration" not in detector.training:  # a helper process of several
        return
    seconds = detector.training["seconds"]["total"]
    done = "was trained before" if finished else f"is trained ({seconds:.0f} s)"
    print(f"{method} {done}. {detector.training['calibration']}")
    after = f"predict {out} SCAN..."
    if cohort is not None:
        after = f"evaluate {out} --cohort {cohort}"
    page = Path(out) / PAGE
    if page.exists():
        print(f"healthy scans: {page} (those with the highest scores; look at them)")
    print(f"detector: {out}\nnext: normscan {after}")


def evaluate(
    run: str,
    cohort: str,
    out: str | None = None,
    root: str | None = None,
    split: str = "test",
    region: Literal["whole", "foreground"] = "whole",
    group: str | None = None,
    baselines: bool = True,
    device: str = "auto",
    overwrite: bool = False,
    threads: int | None = None,
    convention: Literal["radiological", "neurological"] | None = None,
    compare: list[str] | None = None,
    logger: Literal["tensorboard", "mlflow", "wandb"] | None = None,
) -> None:
    """Metrics with intervals and a report page of a trained detector on a cohort.

    Args:
        run: run folder of the detector.
        cohort: table (CSV, TSV, Parquet) or folder.
        out: folder for results.json, scans.csv and report.html; RUN/evaluation by default.
        root: folder of the table's relative paths.
        split: part of the cohort.
        region: pixels that count: those of the whole scan, or of its foreground.
        group: column whose values are told apart.
        baselines: fit the mean image and image statistics too, and print them beside.
        device: auto, cpu or cuda.
        overwrite: replace the evaluation of another cohort or split in the folder.
        threads: of the arithmetic; by default the cores that this process may use.
        convention: in pictures the patient's right at the left (radiological) or at the right
            (neurological); radiological for scans from DICOM by default.
        compare: run folders of other detectors, which are evaluated on the same scans and set side
            by side with this one, with tests and pictures, in compare/ beside the report.
        logger: tensorboard, mlflow or wandb, which gets the figures, in the run of fit where that
            logged there, too.
    """
    from normscan import evaluation
    from normscan.detector import load
    from normscan.tracking import check_logger, figures, tracked

    check_logger(logger)
    use_threads(threads)
    detector = load(run, device)
    table = detector.read_cohort(cohort, root)
    for note in (*table.notes, *detector.out_of_date()):
        print(f"note: {note}", file=sys.stderr)
    folder = Path(out) if out else Path(run) / "evaluation"
    beside = others(compare or [], folder, device)
    with tracked(logger, run) as tracker:
        results = evaluation.evaluate(
            detector, table, folder, split=split, region=region, group=group,
            baselines=evaluation.BASELINES if baselines else (), command=command_line(), progress=True,
            overwrite=overwrite, radiological=None if convention is None else convention == "radiological",
        )  # fmt: skip
        if tracker is not None:
            tracker.results(figures(results))
    print(f"{detector.card.id} on {Path(cohort).stem}, split {split}")
    print(evaluation.text_summary(results))
    print(f"results: {folder / 'results.json'}\nreport:  {folder / 'report.html'}")
    if beside:
        page = set_beside(
            detector, beside, folder, cohort, root, split=split, region=region, group=group,
            radiological=None if convention is None else convention == "radiological",
        )  # fmt: skip
        print(f"beside:  {page}")


def limits(
    run: str,
    cohort: str | None = None,
    phantom: str | None = None,
    out: str | None = None,
    root: str | None = None,
    split: str = "test",
    kind: str = "blob",
    sizes: list[float] | None = None,
    contrasts: list[float] | None = None,
    count: int = 20,
    overlap: float = 0.1,
    seed: int = 0,
    replicates: int = 200,
    device: str = "auto",
) -> None:
    """Plant lesions into healthy scans: the smallest and the faintest that the detector finds.

    Args:
        run: run folder of the detector.
        cohort: table (CSV, TSV, Parquet) or folder with healthy scans in test or val.
        phantom: instead of a cohort, a simulated one, of which new subjects are drawn.
        out: folder for limits.html, .json, .csv, .png and .svg; RUN/limits by default.
        root: folder of the table's relative paths.
        split: part of the cohort.
        kind: blob, or with --phantom also wmh, tumour, infarct, bleed.
        sizes: diameters in mm, such as '[4, 8, 16]'; six that suit the scans by default.
        contrasts: of blobs in robust standard deviations of the foreground, negative for darker
            ones, such as '[-2, 1, 2]'; of the other kinds parts of their usual change.
        count: lesions of each size and contrast, in as many scans as there are.
        overlap: least part of a lesion that must be newly segmented.
        seed: of places and shapes.
        replicates: bootstrap resamples for the intervals.
        device: auto, cpu or cuda.
    """
    from normscan.detector import load
    from normscan.limits import detection_limits, write_limits

    detector = load(run, device)
    table = None if cohort is None else detector.read_cohort(cohort, root)
    folder = Path(out) if out else Path(run) / "limits"
    found = detection_limits(
        detector, table, phantom=phantom, kind=kind, sizes=sizes, contrasts=contrasts, count=count,
        split=split, overlap=overlap, seed=seed, out=folder, replicates=replicates,
        command=command_line(), progress=True,
    )  # fmt: skip
    write_limits(found, folder)
    for failure in found.failures:
        print(f"left out: {failure['scan']}: {failure['reason']}", file=sys.stderr)
    print(f"{found}\nresults: {folder / 'limits.json'}\npage:    {folder / 'limits.html'}")


def methods(json: bool = False) -> None:
    """List the methods: id, family, regime, dimensions, paper.

    Args:
        json: print JSON for machines.
    """
    from normscan.cli import help

    print(help.methods(json))


def demo(out: str = "runs/demo", method: str = "dae", seed: int = 0) -> None:
    """Simulate a cohort, train on its healthy scans, evaluate, and write a report.

    Args:
        out: folder; an earlier demo in it is replaced.
        method: id of the method, with its laptop preset.
        seed: seed of everything random.
    """
    import shutil

    from normscan import evaluation
    from normscan.detector import Detector
    from normscan.io.values import write_json
    from normscan.phantom import simulate

    begun = time.monotonic()
    folder = Path(out)
    marker = folder / "demo.json"
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise OutputError(f"{folder} exists and is no earlier demo. Choose another folder.")
    shutil.rmtree(folder, ignore_errors=True)
    write_json(marker, {"method": method, "seed": seed})
    bar = Progress()
    bar.say("1/3  simulating a cohort: FLAIR slices of 160 healthy and 40 lesioned subjects")
    table = simulate(
        folder / "cohort", healthy=160, lesioned=40, seed=seed,
        progress=lambda done, total: bar.update("simulate", done, total),
    )  # fmt: skip
    cohort = Cohort.read(table)
    bar.say(f"{cohort.summary(bar.track)}\n\n2/3  training {method} on the healthy scans")
    # A split: all healthy scans would set a better threshold, but take five trainings.
    detector = Detector(method, preset="laptop", seed=seed, calibration="split")
    detector.fit(cohort, folder / "run", progress=True)
    bar.say("3/3  evaluating on held-out healthy and lesioned scans")
    results = evaluation.evaluate(
        detector, cohort, folder / "evaluation", report=folder / "report.html",
        command=command_line(), progress=True,
    )  # fmt: skip
    print(f"\n{method} on a simulated cohort ({time.monotonic() - begun:.0f} s in all)")
    print(evaluation.text_summary(results))
    for entry in results.get("groups", {}).get("kind", []):
        auroc, ap = entry["image_auroc"]["value"], entry.get("pixel_ap", {}).get("value")
        print(
            f"  {entry['value']:<18}image AUROC {auroc:.3f}"
            + (f"  pixel AP {ap:.3f}" if ap else "")
        )
    print(f"\ndetector: {folder / 'run'}\nreport:   {folder / 'report.html'}   <- open this")


def phantom(**options: Any) -> None:
    """Simulate a cohort; the options are those of ``normscan.phantom.simulate``."""
    from normscan.phantom import simulate

    bar = Progress()
    table = simulate(**options, progress=lambda done, total: bar.update("simulate", done, total))
    print(Cohort.read(table).summary())
    print(
        f"cohort: {table}\nnext: normscan fit dae --preset laptop --cohort {table} --out runs/phantom"
    )


def signature(name: str) -> Callable[..., Any]:
    """Return the function whose signature and docstring are the options of a command."""
    if name == "phantom":
        from normscan.phantom import simulate

        return simulate
    function: Callable[..., Any] = globals()[name]
    return function
