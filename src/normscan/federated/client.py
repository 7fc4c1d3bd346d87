"""A site: its own scans, its own detector; it sends shared parameters and a number of samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from normscan.cohort import Cohort
from normscan.detector import Detector, fitting, storage
from normscan.errors import NormscanError
from normscan.federated.rounds import plan, round_phase, shared_parameters
from normscan.progress import Progress
from normscan.training.loop import Trainer


class Client:
    """What happens at one site.

    Args:
        site: its value in the cohort's column.
        detector: unfitted, of this site alone.
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
        self, site: str, detector: Detector, cohort: Cohort, folder: Path, fabric: Fabric,
        workers: int, bar: Progress,
    ) -> None:  # fmt: skip
        self.site, self.detector, self.folder, self.fabric = site, detector, folder, fabric
        self.bar = bar
        self.order: list[int] = []
        self.cohort = cohort
        fitting.check_cohort(cohort)
        asked = {**detector.configuration(), "cohort": cohort.digest()}
        storage.claim_folder(folder, asked, resume=False)
        self.sets = fitting.prepare(detector, cohort, folder / "cache", workers, bar)
        assert detector.method is not None
        self.method = detector.method
        self.samples = len(self.sets["healthy"])
        self.method.to(fabric.device)
        self.shared = shared_parameters(self.method)
        self.phases = self.method.phases()
        self.trainer = Trainer(
            self.method, self.sets, self.sets["val"], folder, fabric, detector.seed,
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
        detector = self.detector
        seconds = dict(self.trainer.seconds)
        fitting.finish(detector, self.cohort, self.sets, seconds, self.fabric.device)
        detector.training["seconds"]["total"] = round(sum(seconds.values()), 3)
        detector.training["federated"] = {"site": self.site, "rounds": len(self.order)}
        detector.calibrate(self.cohort.part("val"), self.bar)
        storage.write_detector(detector, self.folder)
