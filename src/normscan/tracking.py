"""What a run logs, for TensorBoard, MLflow and Weights & Biases too: the records of ``log.jsonl``.

Numbers and settings alone are handed on; names of scans, files and folders are not. A run that was
killed and resumed is one run there, and no step of it is sent twice.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from normscan.errors import ArgumentError, OutputError
from normscan.identity import without_folders
from normscan.io.values import read_json, write_json
from normscan.progress import announce

Logger = Literal["tensorboard", "mlflow", "wandb"]
STATE = "tracking.json"  # in the run folder: which run there it is, and what was sent
EXPERIMENT = "normscan"
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
_PLANNED = ("method", "preset", "arguments", "preprocess", "postprocess", "reduction", "fpr",
            "pixel_fpr", "patch", "seed", "wrappers", "calibration", "precision", "processes")  # fmt: skip


class Store(Protocol):
    """Where records go; one object is one opening of one run there."""

    id: str

    def settings(self, values: Mapping[str, Any]) -> None:
        """Note settings, once."""

    def numbers(self, values: Mapping[str, float], phase: str | None, step: int) -> None:
        """Note numbers at a step of a phase; without a phase they are results."""

    def close(self, failed: bool) -> None:
        """Hand all on and end."""


class TensorBoard:
    """Event files in ``RUN/tensorboard``."""

    def __init__(self, folder: Path, id: str, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = id or uuid.uuid4().hex[:12]
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def settings(self, values: Mapping[str, Any]) -> None:
        lines = [f"| {key} | {value} |" for key, value in values.items()]
        self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]))

    def numbers(self, values: Mapping[str, float], phase: str | None, step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class MLflow:
    """A run of the experiment ``normscan``, or of that in ``MLFLOW_EXPERIMENT_NAME``."""

    def __init__(self, folder: Path, id: str, name: str) -> None:
        from mlflow import MlflowClient

        self._client = client = MlflowClient()
        if id:
            self.id = id
            client.update_run(id, status="RUNNING")
            return
        named = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = client.get_experiment_by_name(named)
        place = client.create_experiment(named) if found is None else found.experiment_id
        self.id = str(client.create_run(place, run_name=name).info.run_id)

    def settings(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self._client.log_param(self.id, key, str(value)[:500])

    def numbers(self, values: Mapping[str, float], phase: str | None, step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class WandB:
    """A run of the project ``normscan``, or of that in ``WANDB_PROJECT``; its files in ``RUN/wandb``.

    Neither the terminal, which names scans, nor the machine, code and command are recorded.
    """

    def __init__(self, folder: Path, id: str, name: str) -> None:
        import wandb

        quiet = wandb.Settings(
            console="off", save_code=False, disable_git=True, disable_code=True, silent=True,
            x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, host=EXPERIMENT,
        )  # fmt: skip
        self.id = id or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or EXPERIMENT, id=self.id, name=name,
            resume="allow", dir=str(folder), settings=quiet,
        )  # fmt: skip
        self._phases: set[str] = set()

    def settings(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def numbers(self, values: Mapping[str, float], phase: str | None, step: int) -> None:
        if phase is None:
            self._run.summary.update(dict(values))
            return
        axis = f"{phase}/step"
        if phase not in self._phases:
            self._phases.add(phase)
            self._run.define_metric(axis)
            self._run.define_metric(f"{phase}/*", step_metric=axis)
        self._run.log({axis: step, **values})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


STORES: dict[str, type[TensorBoard] | type[MLflow] | type[WandB]] = {
    "tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB,
}  # fmt: skip


def check_logger(kind: str | None) -> None:
    """Refuse a logger that can't be used, before any work; None is none.

    Raises:
        ArgumentError: no such logger, or its package is not installed.
    """
    if kind is None:
        return
    if kind not in STORES:
        raise ArgumentError(f"logger '{kind}': there are {', '.join(STORES)}.")
    if find_spec(kind) is None:
        raise ArgumentError(f"logger '{kind}' needs its package: pip install 'normscan[{kind}]'.")


class Tracker:
    """Sends the records of a run folder to a logger.

    Args:
        kind: of the logger.
        folder: of the run; nothing is written there before its first record.

    Raises:
        ArgumentError: no such logger, or its package is not installed.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        check_logger(kind)
        self.kind, self.folder = kind, folder
        self.store: Store | None = None
        self.silenced = False
        self.state: dict[str, Any] = {"logger": kind, "id": "", "sent": {}, "settings": False}
        with contextlib.suppress(OSError, ValueError):
            before = read_json(folder / STATE)
            if before.get("logger") == kind:
                self.state = before

    def record(self, folder: Path, line: Mapping[str, Any]) -> None:
        """Send a line of ``log.jsonl``, unless it was sent before a run was killed.

        That it was sent is noted first: of a process that is killed in between a point is missing,
        and none is there twice.

        Args:
            folder: of the log, the run folder or one below it.
            line: with phase_index, phase, step, terms, validation.
        """
        below = folder.relative_to(self.folder).as_posix().removeprefix(".")
        at = [line["phase_index"], line["step"]]
        if at <= self.state["sent"].get(below, [-1, 0]):
            return
        phase = "/".join(filter(None, (below, line["phase"])))
        numbers = {f"{phase}/{name}": value for name, value in line["terms"].items()}
        if line["validation"] is not None:
            numbers[f"{phase}/validation"] = line["validation"]

        def send() -> None:
            store = self._opened()
            self.state["sent"][below] = at
            write_json(self.folder / STATE, self.state)
            store.numbers(numbers, phase, line["step"])

        self._try(send)

    def results(self, numbers: Mapping[str, float]) -> None:
        """Send numbers that have no step, such as those of an evaluation."""
        self._try(lambda: self._opened().numbers(numbers, None, 0))

    def close(self, failed: bool) -> None:
        """End the run there."""
        if (store := self.store) is not None:
            self._try(lambda: store.close(failed))

    def _opened(self) -> Store:
        """Open the store at the first record, when the folder is there and claimed."""
        if self.store is None:
            about = settings(self.folder)
            for name, value in _QUIET.items():
                os.environ.setdefault(name, value)
            name = f"{about.get('method', EXPERIMENT)} {about.get('preset', '')}".strip()
            try:
                self.store = STORES[self.kind](self.folder, self.state["id"], name)
            except Exception as error:
                reason = " ".join(str(error).split())[:300].rstrip(".")
                raise OutputError(f"logger '{self.kind}' can't begin: {reason}.") from error
            self.state["id"] = self.store.id
            if about and not self.state["settings"]:
                self.store.settings(about)
                self.state["settings"] = True
            write_json(self.folder / STATE, self.state)
        return self.store

    def _try(self, send: Callable[[], None]) -> None:
        """Send; a logger that fails ends no training: that is said once, and the rest goes on."""
        if self.silenced:
            return
        try:
            send()
        except OutputError:
            raise
        except Exception as error:
            self.silenced = True
            reason = " ".join(str(error).split())[:300].rstrip(".")
            announce(f"logger '{self.kind}' fails ({reason}). The run goes on without it.")


_active: ContextVar[Tracker | None] = ContextVar("tracker", default=None)


def record(folder: Path, line: Mapping[str, Any]) -> None:
    """Hand a line of ``log.jsonl`` to the logger of the run, if there is one."""
    tracker = _active.get()
    if tracker is not None and folder.is_relative_to(tracker.folder):
        tracker.record(folder, line)


@contextlib.contextmanager
def tracked(logger: str | None, run: str | os.PathLike[str]) -> Iterator[Tracker | None]:
    """Send what is logged inside the block to a logger, too.

    Args:
        logger: tensorboard, mlflow, wandb, or None for none.
        run: run folder.

    Raises:
        ArgumentError: no such logger, or its package is not installed.
        OutputError: the logger can't begin.

    Example:
        >>> with tracked("mlflow", "runs/dae"):  # doctest: +SKIP
        ...     ns.create("dae").fit("cohort.csv", "runs/dae")
    """
    if logger is None:
        yield None
        return
    tracker = Tracker(logger, Path(run))
    token = _active.set(tracker)
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        _active.reset(token)
        tracker.close(failed)


def settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a run folder as flat values, without names and folders."""
    try:
        about = read_json(folder / "config.json")
    except (OSError, ValueError):
        return {}
    flat: dict[str, Any] = {}

    def put(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, part in value.items():
                put(f"{key}.{name}", part)
        elif isinstance(value, list):
            flat[key] = without_folders(", ".join(map(str, value)))
        else:
            flat[key] = without_folders(value) if isinstance(value, str) else value

    for key in _PLANNED:
        if key in about:
            put(key, about[key])
    return flat


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of ``results.json`` with the ends of their intervals, by name."""
    split = results["cohort"]["split"]
    found = {}
    for name, entry in results["metrics"].items():
        kind = "oracle/" if entry.get("oracle") else ""
        for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            if isinstance(entry.get(end), int | float):
                found[f"evaluation/{split}/{kind}{name}{suffix}"] = float(entry[end])
    return found


def amounts(training: Mapping[str, Any]) -> dict[str, float]:
    """Return what is counted in the training record of a detector: seconds, scans, subjects."""
    found = {}
    for part in ("seconds", "cohort_size", "subjects"):
        for name, value in training.get(part, {}).items():
            found[f"fit/{part}/{name}"] = float(value)
    return found
