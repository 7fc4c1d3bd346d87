"""Optuna's study in the folder of a search: it proposes arguments, and keeps what trials found."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normscan.errors import ArgumentError
from normscan.rng import derive_seed
from normscan.tune.space import Choices, Space, combinations
from normscan.tune.trial import Outcome

JOURNAL = "journal.log"
STARTUP = 4  # trials at random, before the sampler compares; and before one may be given up
TRIES = 20  # to find arguments that were not tried

Proposal = tuple[int, dict[str, Any]]  # number of a trial, and its arguments


class GivenUpError(Exception):
    """A trial found less in the middle of its training than most others."""


class Study:
    """A study that goes on where it was killed, and ends as the straight one would.

    Args:
        space: of arguments.
        usual: the preset's own, which are the first trial.
        folder: for its journal.
        seed: of the sampler.

    Raises:
        ArgumentError: Optuna isn't installed.
    """

    def __init__(self, space: Space, usual: Mapping[str, Any], folder: Path, seed: int) -> None:
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise ArgumentError(
                "the search needs Optuna, which isn't installed: pip install 'normscan[tune]'."
            ) from error
        self.optuna, self.space, self.usual, self.seed = optuna, space, usual, seed
        self._open: dict[int, Any] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what Optuna calls experimental
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
                study_name="tune", direction="maximize", load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
            )  # fmt: skip
        self._states = optuna.trial.TrialState
        for left in self.study.get_trials(deepcopy=False, states=(self._states.RUNNING,)):
            self.study.tell(left.number, state=self._states.FAIL)  # killed: it is proposed again

    def over(self) -> list[Any]:
        """Return Optuna's records of the trials that were judged, given up, or failed by themselves."""
        return [t for t in self.study.get_trials(deepcopy=False) if "arguments" in t.user_attrs]

    @property
    def seconds(self) -> float:
        """That all trials took."""
        return sum(float(t.user_attrs.get("seconds", 0)) for t in self.over())

    def proposals(self, count: int, most: int) -> list[Proposal]:
        """Return the next trials, at most so many; none where all is tried.

        Args:
            count: of proposals.
            most: trials of the whole search; where there are as few combinations, each is tried.
        """
        tried = [t.user_attrs["arguments"] for t in self.over()]
        every = combinations(self.space)
        wave: list[Proposal] = []
        for _ in range(count):
            one: tuple[Any, dict[str, Any]]
            if not tried:
                one = self._asked(0, 0), {}
            elif every is not None and len(every) <= most:
                left = [c for c in every if self._fresh(c, tried)]
                if not left:
                    break
                one = self._fixed(left[0]), left[0]
            else:
                found = self._sampled(tried)
                if found is None:
                    break
                one = found
            number, arguments = one[0].number, one[1]
            self._open[number] = one[0]
            tried.append(arguments)
            wave.append((number, arguments))
        return wave

    def _fresh(self, arguments: Mapping[str, Any], tried: list[dict[str, Any]]) -> bool:
        usual = all(self.usual[name] == value for name, value in arguments.items())
        return not usual and arguments not in tried

    def _asked(self, place: int, again: int) -> Any:
        """Ask for a trial with a sampler of its own, so that no running state must be kept."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.study.sampler = self.optuna.samplers.TPESampler(
                seed=derive_seed(self.seed, "tune", place, again) % 2**32,
                n_startup_trials=STARTUP, constant_liar=True,
            )  # fmt: skip
        return self.study.ask()

    def _fixed(self, arguments: Mapping[str, Any]) -> Any:
        """A trial with these choices."""
        places = {
            name: self._places(name)[1].index(repr(value)) for name, value in arguments.items()
        }
        self.study.enqueue_trial(places)
        trial = self._asked(0, 0)
        self._suggested(trial)
        return trial

    def _sampled(self, tried: list[dict[str, Any]]) -> tuple[Any, dict[str, Any]] | None:
        """A trial with arguments that were not tried, or None."""
        for again in range(TRIES):
            trial = self._asked(len(tried), again)
            arguments = self._suggested(trial)
            if self._fresh(arguments, tried):
                return trial, arguments
            self.study.tell(trial, state=self._states.FAIL)
        return None

    def _places(self, name: str) -> tuple[list[int], list[str]]:
        """Numbers of the choices, since Optuna knows neither lists nor tables, and their texts."""
        one = self.space[name]
        assert isinstance(one, Choices)
        return list(range(len(one.values))), [repr(v) for v in one.values]

    def _suggested(self, trial: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, one in self.space.items():
            if isinstance(one, Choices):
                place = trial.suggest_categorical(name, self._places(name)[0])
                found[name] = one.values[place]
            elif one.whole:
                found[name] = trial.suggest_int(name, int(one.low), int(one.high), log=one.log)
            else:
                found[name] = trial.suggest_float(name, one.low, one.high, log=one.log)
        return found

    def watch(self, number: int, part: int, value: float) -> None:
        """Take in what a trial finds after a part of its training.

        Raises:
            GivenUpError: less than the median of the others did there.
        """
        trial = self._open[number]
        trial.report(value, part)
        if trial.should_prune():
            raise GivenUpError("it finds less than most others did there")

    def tell(self, number: int, arguments: dict[str, Any], outcome: Outcome | str | None) -> None:
        """Keep how a trial ended: judged, failed with a reason, or given up (None)."""
        trial = self._open.pop(number)
        trial.set_user_attr("arguments", arguments)
        if isinstance(outcome, Outcome):
            trial.set_user_attr("outcome", vars(outcome))
            trial.set_user_attr("seconds", outcome.seconds)
            self.study.tell(trial, outcome.mean())
            return
        if outcome is not None:
            trial.set_user_attr("reason", outcome)
        self.study.tell(trial, state=self._states.PRUNED if outcome is None else self._states.FAIL)
