"""Autoencoders whose dropout also speaks at test: the mean of many restorations and their spread."""

from __future__ import annotations

import math
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.compact import split_uncertainty
from normscan.methods.autoencoders.plain import BAUR_POSTPROCESS, BAUR_RANGE, OWN_RANGE, PRIOR
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.monte_carlo import MonteCarloReconstruction, moments, monte_carlo_dropout
from normscan.methods.reconstruction import positive, squared
from normscan.methods.schedule import Schedule, phase, schedule, with_training
from normscan.networks.skip import Dropping, ResidualConvAutoencoder, SkipAutoencoder
from normscan.registry import register

_QUICK = {
    "lr": 1e-3,
    "patience": None,
    "preprocess": {**OWN_RANGE, "scaling": "median"},
}
_LAPTOP = {"size": 64, "width": 16, "batch_size": 16, "steps": 300, **_QUICK}
_TINY = {
    "size": 32,
    "width": 8,
    "lr": 2e-3,
    "steps": 200,
    "patience": None,
    "postprocess": (),
    "preprocess": {**OWN_RANGE, "scaling": "auto"},
}
# At 32 or 64 pixels a lesion is as wide as the skips' pixels: only strong dropout keeps them honest.
_LAPTOP_SKIP = {**_LAPTOP, "code": 4, "dropout": 0.5}
_TINY_SKIP = {**_TINY, "code": 4, "dropout": 0.5, "passes": 5}


class Skips(Schedule):
    """The arguments of the skip autoencoder, those of ``schedule`` among them."""

    size: int
    code: int
    width: int
    dropout: float
    dropping: Dropping


SKIPS = with_training(
    Skips,
    {"size": 256, "code": 8, "width": 32, "dropout": 0.2, "dropping": "element"},
    {
        "size": "pixels along each axis, a power of two times ``code``.",
        "code": "pixels of the code along each axis.",
        "width": "channels of the first convolution; the widest has four times as many.",
        "dropout": "rate on the code and on each skip.",
        "dropping": "``element`` drops single numbers, ``channel`` whole feature maps.",
    },
    lr=1e-4,
    batch_size=8,
    epochs=1000,
    patience=5,
)


def mean_absolute(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Mean absolute error."""
    return {"l1": (restored - batch.image).abs().mean()}


def skip_network(dims: int, channels: int, options: Skips) -> SkipAutoencoder:
    """Return the network of both skip autoencoders."""
    return SkipAutoencoder(
        dims, channels, options["size"], width=options["width"], dropout=options["dropout"],
        dropping=options["dropping"], code=options["code"],
    )  # fmt: skip


@register(
    "bayesian_skip_ae",
    paper="Baur 2020",
    dims=(2, 3),
    presets={
        "laptop": {
            **_LAPTOP_SKIP,
            "passes": 20,
            "postprocess": ("erode=2", "hyperintense=0.9", "median=3"),
        }
    },
    postprocess=PRIOR["postprocess"],
    smallest_component=7,
    preprocess=BAUR_RANGE,
    tiny=_TINY_SKIP,
    options=SKIPS,
)
def bayesian_skip_autoencoder(
    dims: int = 2,
    channels: int = 1,
    passes: int = 100,
    normalised: bool = False,
    floor: float = 0.01,
    **options: Unpack[Skips],
) -> Method:
    """Bayesian skip autoencoder, for bright lesions.

    Baur et al., ISBI 2020: a fully convolutional autoencoder with skips, which would copy its input
    but for the dropout on each of them, trained on the absolute error; at test the dropout stays
    on, the restoration is the mean of the passes and the map what is brighter than it, where the
    image is bright, in the brain, median filtered. The variance of the passes is the uncertainty.

    Departures:
        sizes: no code was released and the article's numbers aren't known here: size, widths, rate
            of the dropout, passes and schedule are ours; dropout on the code, too.
        range, erosion, brightest tenth and median: those of the group's later study (``ae_dense``).
        third axis: ours.

    Args:
        passes: with dropout on, averaged; 0 for one pass without dropout (the skip autoencoder).
        normalised: divide the map by the standard deviation of the passes.
        floor: smallest standard deviation that it is divided by.
    """
    return MonteCarloReconstruction(
        skip_network(dims, channels, options), mean_absolute, positive, options,
        passes=passes, floor=floor if normalised else None,
    )  # fmt: skip


@register(
    "healthy_anatomy_ae",
    paper="Baur 2021 (Radiology: AI)",
    dims=(2, 3),
    presets={"laptop": {**_LAPTOP_SKIP, "postprocess": ("erode=2", "median=3")}},
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess=BAUR_RANGE,
    tiny=_TINY_SKIP,
    options=SKIPS,
)
def healthy_anatomy_autoencoder(
    dims: int = 2,
    channels: int = 1,
    passes: int = 0,
    score_channel: int | None = None,
    squash: bool = False,
    **options: Unpack[Skips],
) -> Method:
    """Model of healthy anatomy: a skip autoencoder over several contrasts.

    Baur et al., Radiology: Artificial Intelligence 2021, on FLAIR and T1 scans that lie on each
    other: the network of ``bayesian_skip_ae`` restores all contrasts; the map is what is brighter
    than the restoration in the contrast that shows lesions, in the eroded brain, median filtered.

    Departures:
        sizes: no code was released and the article's numbers aren't known here: size, rate,
            schedule and the single pass at test are ours, and images aren't augmented.
        range, erosion and median: those of the group's study of the same year (``ae_dense``).
        score: the mean of the map over the foreground; the article counts lesions.
        third axis: ours.

    Args:
        passes: with dropout on, averaged; 0 for one pass without dropout.
        score_channel: number of the channel that the map is read from, FLAIR in the article; None
            averages over the channels.
        squash: show 2 (sigmoid(100 r) - 0.5) in place of the residual r: a heat map for readers.
            Beyond 0.1 all residuals look alike, so scores are better without.
    """
    if score_channel is not None and not 0 <= score_channel < channels:
        raise ArgumentError(
            f"score_channel={score_channel}, but the image has {channels} channel(s), counted from 0."
        )
    chosen = slice(None) if score_channel is None else slice(score_channel, score_channel + 1)

    def residual(x: Tensor, restored: Tensor) -> Tensor:
        r = positive(x[:, chosen], restored[:, chosen])
        return 2 * (torch.sigmoid(100 * r) - 0.5) if squash else r

    network = skip_network(dims, channels, options)
    return MonteCarloReconstruction(network, mean_absolute, residual, options, passes=passes)


class BayesianConvAutoencoder(Method):
    """Mean and, on request, log variance of each pixel under a posterior of weights (dropout).

    Args:
        network: image to mean, or to mean and log variance.
        training: the shared arguments.
        likelihood: whether it gives the log variance.
        score: ``squared`` error or ``nll``.
        passes: at test.
    """

    def __init__(
        self, network: nn.Module, training: Schedule, *, likelihood: bool, score: str, passes: int
    ) -> None:
        super().__init__()
        self.network = network
        self.likelihood, self.score, self.passes = likelihood, score, passes
        self._training = training

    def phases(self) -> list[Phase]:
        return [phase(self.network, self._training)]

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of a pass, (B, C, *spatial) each; log 1 where it isn't learnt."""
        y = self.network(x)
        if not self.likelihood:
            return y, torch.zeros_like(y)
        return split_uncertainty(y)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        mean, log_variance = self.predict(batch.image)
        error = (batch.image - mean).square()
        if not self.likelihood:
            return {"l2": error.mean()}
        return {"error": ((-log_variance).exp() * error).mean(), "spread": log_variance.mean()}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = batch.image

        def draw() -> Tensor:
            mean, log_variance = self.predict(x)
            return torch.cat([mean, log_variance.exp()], dim=1)

        with monte_carlo_dropout(self.network, batch.rng):
            average, spread = moments(draw, self.passes)
        restored, noise = average.chunk(2, dim=1)
        variance = spread.chunk(2, dim=1)[0]
        if self.likelihood:
            variance = variance + noise  # E[sigma^2] + Var[mu]
        result = squared(x, restored)
        if self.score == "nll":
            nll = (x - restored).square() / variance + variance.log() + math.log(2 * math.pi)
            result = (nll / 2).mean(dim=1, keepdim=True)
        return Maps(
            map=result, reconstruction=restored, uncertainty=variance.mean(dim=1, keepdim=True)
        )


@register(
    "bayesian_conv_ae_ct",
    paper="Pawlowski 2018",
    dims=(2,),
    presets={"laptop": {**_LAPTOP, "width": 8, "dropout": 0.1, "passes": 20}},
    tiny={**_TINY, "width": 4, "stages": 3, "dropout": 0.1, "passes": 5, "steps": 80, "lr": 5e-3},
    options=schedule(lr=1e-3, batch_size=16, epochs=200, patience=10),
)
def bayesian_conv_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    width: int = 16,
    stages: int = 4,
    dropout: float = 0.3,
    likelihood: bool = False,
    score: Literal["squared", "nll"] = "squared",
    passes: int = 50,
    **training: Unpack[Schedule],
) -> Method:
    """Bayesian convolutional autoencoder, made for bleedings in brain CT.

    Pawlowski et al., MIDL 2018, on registered slices in the middle of the brain: a convolutional
    autoencoder with dropout, whose masks are samples of its weights; the map is the squared
    difference to the mean of the passes, or the negative log-likelihood under their mean and total
    variance. CT wants a window, as ``--preprocess '{"preset": "brain-ct"}'`` sets.

    Departures:
        network: no code was released. The layout here, residual units with a spatial code and
            dropout on both sides, is ours; the autoencoder of the authors' library (DLTK) isn't
            residual and has a dense code of 128 numbers.
        sizes: widths, rates, passes and schedule are ours; the article's aren't known here.
        posterior: dropout only; the article's other one, weights sampled by a second network (Bayes
            by hypernet), isn't offered.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of 2**stages.
        width: channels of the first stage; each further one doubles them.
        stages: halvings of the image.
        dropout: rate after each stage.
        likelihood: learn the variance of each pixel too, by the Gaussian likelihood.
        score: ``squared`` error, or ``nll``, which needs ``likelihood``.
        passes: samples of the weights at test.
    """
    if size % 2**stages:
        raise ArgumentError(
            f"size={size} can't be halved {stages} times. Use size={-(-size // 2**stages) * 2**stages}."
        )
    if score == "nll" and not likelihood:
        raise ArgumentError("score='nll' needs the variance of each pixel: set likelihood=True.")
    network = ResidualConvAutoencoder(
        dims, channels, channels * (1 + likelihood), width, stages, dropout
    )
    return BayesianConvAutoencoder(
        network, training, likelihood=likelihood, score=score, passes=passes
    )
