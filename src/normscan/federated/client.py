"""A site: its own scans, its own detector; it sends shared parameters and a number of samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from normscan.cohort import Cohort
from normscan.detector import fitting
from normscan.detector.state import State
from normscan.detector.storage import write_state
from normscan.errors import NormscanError
from normscan.federated.rounds import plan, round_phase, shared_parameters
from normscan.progress import Progress
from normscan.training.folder import CACHE, claim_folder
from normscan.training.loop import Trainer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Client:
    """What happens at one site.

    Args:
        site: its value in the cohort's column.
        asked: the unfitted detector, of this site alone.
        cohort: the site's scans.
        folder: of the detector.
        fabric: device and precision.
        workers: processes that prepare scans.
        bar: shows progress.

    Attributes:
        samples: number of training samples, the site's weight in the mean.
        order: phase of each round, see ``plan``.

    Raises:
        CohortError: no healthy scans to train on or to set the threshold with.
    """

    def __init__(
        self, site: str, asked: State, cohort: Cohort, folder: Path, fabric: Fabric,
        workers: int, bar: Progress,
    ) -> None:  # fmt: skip
        self.site, self.folder, self.fabric, self.bar = site, folder, fabric, bar
        self.order: list[int] = []
        self.cohort = cohort = fitting.admit(asked, cohort)
        claim_folder(folder, {**asked.configuration(), "cohort": cohort.digest()}, resume=False)
        self.state, self.sets = fitting.begin(asked, cohort, folder / CACHE, workers, bar)
        self.method = fitting.built(self.state)
        self.samples = len(self.sets["healthy"])
        self.method.to(fabric.device)
        self.shared = shared_parameters(self.method)
        self.phases = self.method.phases()
        self.trainer = Trainer(
            self.method, self.sets, self.sets["val"], folder, fabric, asked.seed,
            lambda *_: None,
        )  # fmt: skip

    def plan(self, rounds: int) -> list[int]:
        """The phase of each round by this site's number of samples."""
        return plan(self.phases, rounds, self.samples)

    def send(self) -> dict[str, np.ndarray]:
        """Copies of the shared parameters by name, and nothing else."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.shared.items()}

    @torch.no_grad()
    def receive(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the mean of all sites.

        Raises:
            NormscanError: other parameters or shapes than this site shares.
        """
        for name, p in self.shared.items():
            if name not in arrays or arrays[name].shape != tuple(p.shape):
                raise NormscanError(
                    f"the parameter {name} came as {getattr(arrays.get(name), 'shape', 'nothing')}, "
                    f"not as {tuple(p.shape)}. Do all sites have the same channels and settings?"
                )
        if len(arrays) != len(self.shared):
            raise NormscanError("parameters came that this site doesn't share.")
        for name, p in self.shared.items():
            p.copy_(torch.from_numpy(arrays[name]))

    def train(self, number: int, epochs: int) -> None:
        """Train a round, counted from 0, with a fresh optimiser."""
        self.trainer.train(number, round_phase(self.phases, self.order, number, epochs))

    def finish(self) -> None:
        """The closed-form part and the threshold from this site's scans; write the detector."""
        seconds = dict(self.trainer.seconds)
        state = fitting.fit_closed_form(self.state, self.cohort, self.sets, seconds, self.fabric)
        state.training["seconds"]["total"] = round(sum(seconds.values()), 3)
        state.training["federated"] = {"site": self.site, "rounds": len(self.order)}
        state = fitting.calibrate(state, self.cohort.part("val"), self.bar)
        state = state.changed(division=self.cohort.division())
        self.state = write_state(state, self.folder)
