"""Heads that look for seen, simulated and residual anomalies, each with a score of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import PICTURE
from normscan.methods.supervised.common import (
    LAPTOP,
    TINY,
    OpenSet,
    Pyramid,
    any_turn,
    deviates,
    ill,
    open_phase,
    open_set,
)
from normscan.networks.circuit import Circuit
from normscan.objectives.deviation import highest_mean
from normscan.objectives.optimizers import stairs
from normscan.registry import register
from normscan.rng import Rng
from normscan.synthesis.tasks import cutpaste

HEALTHY, SEEN, SIMULATED = 0, 1, 2


class HolisticHead(nn.Module):
    """One score of the mean feature; healthy images are to stand out in it.

    Args:
        width: channels of the features.
        hidden: of the layer between.
    """

    def __init__(self, width: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B,) of features (B, width, h, w)."""
        return self.layers(features.mean((2, 3)))[:, 0].abs()


class PlainHead(nn.Module):
    """The highest absolute responses to a 1x1 convolution.

    Args:
        width: channels of the features.
        share: of the places.
    """

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.filter, self.share = nn.Conv2d(width, 1, 1), share

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B,) of features (B, width, h, w)."""
        return highest_mean(self.filter(features).flatten(1).abs(), self.share)[0]


class ResidualHead(PlainHead):
    """A plain head on what features differ by from the mean of healthy references."""

    def __init__(self, width: int, share: float) -> None:
        super().__init__(width, share)
        self.compare = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )

    def against(self, features: Tensor, references: Tensor) -> Tensor:
        """Scores (B,) of features (B, width, h, w) beside those of references."""
        return self(self.compare(references.mean(0) - features))


class QuantumHead(nn.Module):
    """The expectations of a circuit that the mean feature is encoded in.

    Args:
        width: channels of the features.
        circuit: of some qubits.
    """

    def __init__(self, width: int, circuit: Circuit) -> None:
        super().__init__()
        self.reduce, self.circuit = nn.Linear(width, circuit.qubits), circuit
        self.read = nn.Linear(circuit.qubits, 1)

    def forward(self, features: Tensor, rng: Rng | None = None) -> Tensor:
        """Scores (B,) of features (B, width, h, w); with a source they are measured, with noise."""
        angles = torch.pi * self.reduce(features.mean((2, 3)).tanh()).tanh()
        circuit = self.circuit
        if rng is None:
            found = circuit(angles)
        elif circuit.shots is None:
            found = circuit.noisy(angles)
        else:
            shape = (len(angles), circuit.shots, 1 + circuit.qubits)
            found = circuit(angles, rng.uniform(shape).to(angles.device))
        return self.read(found)[:, 0].abs()


def wanted(kind: Tensor) -> dict[str, Tensor]:
    """Which of the samples that each head looks at are to stand out in it, by their kinds (B,)."""
    return {
        "holistic": kind == HEALTHY,
        "seen": kind[kind != SIMULATED] == SEEN,
        "simulated": kind[kind != SEEN] == SIMULATED,
        "residual": kind != HEALTHY,
        "further": kind != HEALTHY,
    }


class Disentangled(Method):
    """Several heads on one learning backbone; see ``dra``.

    Args:
        pyramid: the backbone.
        further: builds one more head, of all anomalies, from the width, or None.
        references: healthy images that residuals are taken from.
        o: the shared arguments.
    """

    references: Tensor
    of_first = ("references",)  # of several processes: pictures have no mean

    def __init__(
        self, pyramid: Pyramid, further: Callable[[int], QuantumHead] | None, references: int,
        o: OpenSet,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pyramid, width, share = pyramid, pyramid.width, o["share"]
        self.holistic = HolisticHead(width)
        self.seen, self.simulated = PlainHead(width, share), PlainHead(width, share)
        self.residual = ResidualHead(width, share)
        self.further = None if further is None else further(width)
        self._options, self._corrupt, self._most = o, cutpaste(), references
        self.register_buffer("references", torch.zeros(0))

    def phases(self) -> list[Phase]:
        heads = [self.holistic, self.seen, self.simulated, self.residual]
        modules = [self.pyramid, *heads, *([] if self.further is None else [self.further])]
        rhythm = stairs(3, ahead=1 / 30)
        # Named twice it gives two thirds of a batch.
        return [open_phase(modules, self._options, rhythm, "healthy+healthy+labelled")]

    def heads(
        self, image: Tensor, references: Tensor, kind: Tensor, rng: Rng | None = None
    ) -> dict[str, Tensor]:
        """The score that each head gives the images that it looks at.

        Args:
            image: (B, C, H, W).
            references: healthy images, of any number.
            kind: (B,) ``HEALTHY``, ``SEEN`` or ``SIMULATED``.
            rng: of measurements, at test.
        """
        count, found = len(references), list[dict[str, Tensor]]()
        for features in self.pyramid(torch.cat([references, image])):
            beside, own = features[:count], features[count:]
            scores = {
                "holistic": self.holistic(own),
                "seen": self.seen(own[kind != SIMULATED]),
                "simulated": self.simulated(own[kind != SEEN]),
                "residual": self.residual.against(own, beside),
            }
            if self.further is not None:
                scores["further"] = self.further(own, rng)
            found.append(scores)
        return {name: torch.stack([f[name] for f in found]).mean(0) for name in found[0]}

    def mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images, half of the healthy ones with a part of themselves elsewhere, and their kinds."""
        image, kind = batch.image, ill(batch).long()
        changed = (batch.rng.uniform((len(image),)) < 0.5).to(image.device) & (kind == HEALTHY)
        pasted = self._corrupt(image, image, batch.rng, torch.ones_like(batch.foreground)).image
        image = torch.where(changed[:, None, None, None], pasted, image)
        return image, torch.where(changed, SIMULATED, kind)

    def drawn(self, batch: Batch) -> Tensor:
        """Healthy references: those of the update before; this one's are kept for the next."""
        healthy = batch.image[~ill(batch)][: self._most].detach()
        before = self.known(batch.image)
        if torch.is_grad_enabled() and len(healthy):
            self.references = healthy.clone()
        return before

    def known(self, image: Tensor) -> Tensor:
        """The references, a black image before the first update."""
        return self.references.to(image) if len(self.references) else torch.zeros_like(image[:1])

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        image, kind = self.mixed(batch)
        references = any_turn(batch, self.drawn(batch))
        scores = self.heads(any_turn(batch, image), references, kind)
        truth, margin = wanted(kind), self._options["margin"]
        return {
            name: deviates(score, truth[name], batch.rng, margin) for name, score in scores.items()
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        image = batch.image
        every = torch.full((len(image),), -1, device=image.device)
        scores = self.heads(image, self.known(image), every, batch.rng)
        healthy = scores.pop("holistic")
        return Maps(score=torch.stack([-healthy, *scores.values()]).sum(0))


@register(
    "dra",
    paper="Ding 2022",
    regime="few-anomalies",
    preprocess=PICTURE,
    presets={"laptop": LAPTOP},
    tiny=TINY,
    options=open_set(steps=600),
)
def dra(
    dims: int = 2, channels: int = 1, references: int = 5, **options: Unpack[OpenSet]
) -> Method:
    """Disentangled representations of abnormality: a head each for seen, simulated, residual ones.

    Ding, Pang and Shen, CVPR 2022: a ResNet-18 learns under four heads on its last stage, at 448
    pixels and at half of that. One scores the mean feature, and healthy images are to stand out in
    it; two score the highest tenth of the places, for labelled anomalies and for simulated ones; one
    scores likewise how features differ from the mean of five healthy references. Half of the healthy
    images in a batch are turned into simulated anomalies: a part of 2 to 15 % of the area, a little
    jittered, is copied elsewhere. Each head has the deviation loss of ``devnet`` on the images that
    it looks at. Batches of 48, a third anomalous, turned by any angle; 30 epochs of 20 updates with
    Adam 2e-4, decay 1e-5, a gradient of norm 1 at most, the rate a tenth after 9, 19 and 29 epochs.
    The score is the sum of the last three heads less the first; there is no map.

    Departures:
        references: clean healthy images of the update before, and those of the last update at test,
            so that a score is always the same; the release draws new ones at test too, half of them
            simulated anomalies.
        simulated: made of the image itself; the release takes another healthy one for each. Its
            jitter of hue and saturation is left out.
        turning: reads between pixels linearly; the release takes the nearest ones.

    Args:
        size: pixels along each axis.
        taps: the stage whose features are scored, one.
        references: healthy images that the last head compares with.
    """
    return Disentangled(Pyramid(options, channels), None, references, options)


@register(
    "qsco",
    paper="Peng 2025",
    regime="few-anomalies",
    preprocess=PICTURE,
    presets={"laptop": LAPTOP},
    tiny={**TINY, "qubits": 3},
    options=open_set(steps=600),
)
def qsco(
    dims: int = 2,
    channels: int = 1,
    references: int = 5,
    qubits: int = 9,
    layers: int = 2,
    shots: int | None = None,
    depolarising: float = 0.0,
    **options: Unpack[OpenSet],
) -> Method:
    """A variational quantum circuit as one more score beside those of DRA (Qsco).

    Peng et al., AAAI 2025: a fifth head on the features of ``dra``. They go through tanh, one number
    for each of 9 qubits turns it (RY), then come two layers of a rotation of every qubit and a chain
    of controlled NOTs; what is read are the expectations of Pauli's Z. Its score is added to that of
    DRA, and it has a deviation loss of its own. Everything else is as in ``dra``.

    Departures:
        simulator: an exact state vector of our own in place of PennyLane's, whose numbers it gives.
        details: no code was released, and the article doesn't say how features become nine numbers,
            how expectations become a score, and how the loss is weighed. Here: a linear layer on the
            tanh of the mean feature, whose tanh times pi is the angle; a linear layer on the
            expectations, absolute; weight 1, on all images, anomalous against healthy.
        see ``dra`` for the rest.

    Args:
        size: pixels along each axis.
        taps: the stage whose features are scored, one.
        references: healthy images that the residual head compares with.
        qubits: of the circuit.
        layers: of rotations and controlled NOTs.
        shots: measurements that an expectation is estimated from at test; None for the exact one.
        depolarising: probability that a qubit is depolarised before it is read, at test.
    """

    def further(width: int) -> QuantumHead:
        return QuantumHead(width, Circuit(qubits, layers, shots, depolarising))

    return Disentangled(Pyramid(options, channels), further, references, options)
