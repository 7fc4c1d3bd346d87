"""How typical what a variational autoencoder says of a scan is, and where single scores are blind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import positive
from normscan.methods.variational.erasing import TINY, VOLUME, Volume
from normscan.methods.variational.vae import VariationalReconstruction
from normscan.networks.autoencoder import BaurAutoencoder, Code, Levels
from normscan.registry import register

Statistic = Literal["kl", "error", "bound", "entropy"]
STATISTICS: tuple[Statistic, ...] = ("kl", "error", "bound", "entropy")
FEW = 10  # pixels of a foreground that has no entropy


def masked_entropy(residual: Tensor, mask: Tensor) -> Tensor:
    """Entropy (B,) of residuals (B, 1, *spatial) inside masks, over that of as many equal ones.

    The residual is divided by its sum over the whole image first. Where the mask has 10 pixels or
    fewer it is 0.
    """
    share = residual / residual.flatten(1).sum(1).clamp_min(1e-30).reshape(
        -1, *[1] * (mask.ndim - 1)
    )
    bits = (share * (share + 1e-4).log2() * mask).flatten(1).sum(1)
    pixels = mask.flatten(1).sum(1).to(residual)
    return torch.where(pixels > FEW, -bits / pixels.clamp_min(2).log2(), 0.0)


def density(values: Tensor, known: Tensor) -> Tensor:
    """Gaussian kernel density of values (B, K) for each of K statistics, of known ones (n, K).

    The bandwidth is Scott's, as scipy's.
    """
    n = len(known)
    width = (known.std(0) * n ** (-1 / 5)).clamp_min(1e-12)
    kernels = torch.distributions.Normal(known[None], width[None, None]).log_prob(values[:, None])
    return kernels.exp().mean(1)


class Typical(VariationalReconstruction):
    """The score is how rare the statistics of a scan are among healthy ones; see ``ood_blind_spot``.

    Args:
        *parts: of ``VariationalReconstruction``.
        statistics: that count.
        **options: of ``VariationalReconstruction``.
    """

    known: Tensor

    def __init__(self, *parts: Any, statistics: tuple[Statistic, ...], **options: Any) -> None:
        super().__init__(*parts, **options)
        self.statistics = statistics
        self.register_buffer("known", torch.randn(2, len(STATISTICS), dtype=torch.double))

    def error(self, x: Tensor, restored: Tensor, mask: Tensor) -> Tensor:
        """Absolute error summed in the mask over its pixels, (B,)."""
        inside = ((x - restored).abs() * mask).flatten(1).sum(1)
        return inside / mask.flatten(1).sum(1).clamp_min(1)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        mean, log_std = self.encode(batch.image)
        restored = self.network.decode(self.draw(mean, log_std, batch))
        error = self.error(batch.image, restored, batch.foreground).mean()
        return {"l1": error, "kl": self.kl_weight * self.divergence(mean, log_std).mean()}

    @torch.no_grad()
    def measured(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The statistics of scans, (B, 4) in the order of ``STATISTICS``, and their restorations."""
        x, mask = batch.image, batch.foreground
        mean, log_std = self.encode(x)
        restored = self.network.decode(self.draw(mean, log_std, batch))
        kl = self.divergence(mean, log_std).flatten(1).mean(1)
        error = self.error(x, restored, mask)
        entropy = masked_entropy(positive(x, restored), mask)
        return torch.stack([kl, error, error - kl, entropy], 1).double(), restored

    def fit(self, batches: Iterable[Batch]) -> None:
        """Keep the statistics of healthy scans."""
        self.known = torch.cat([self.measured(batch)[0] for batch in batches])

    def rarity(self, statistics: Tensor, counted: tuple[Statistic, ...]) -> Tensor:
        """Minus the summed densities of some of the statistics (B, 4), (B,)."""
        columns = [STATISTICS.index(name) for name in counted]
        return -density(statistics[:, columns], self.known[:, columns]).sum(1)

    def maps(self, batch: Batch) -> Maps:
        statistics, restored = self.measured(batch)
        score = self.rarity(statistics, self.statistics)
        return Maps(positive(batch.image, restored), score, restored)

    def blind_spots(
        self, healthy: Batch, others: Mapping[str, Batch]
    ) -> dict[str, dict[str, float]]:
        """How well each statistic tells other scans from healthy ones: areas under the ROC curve.

        Large values of a single statistic count as anomalous, so that an area far below one half is
        a blind spot: scans that are nothing like the training ones look more normal than these.

        Args:
            healthy: scans that were not trained on.
            others: scans that are out of distribution, by name.

        Returns:
            By name of the scans: areas by statistic, of ``likelihood`` (error plus divergence), and
            of DoSE with (``dose``) and without (``dose_plain``) the entropy.
        """
        from sklearn.metrics import roc_auc_score

        def scores(batch: Batch) -> dict[str, Tensor]:
            found, _ = self.measured(batch)
            single: dict[str, Tensor] = dict(zip(STATISTICS, found.unbind(1), strict=True))
            return {
                **single, "likelihood": single["error"] + single["kl"],
                "dose": self.rarity(found, STATISTICS),
                "dose_plain": self.rarity(found, STATISTICS[:3]),
            }  # fmt: skip

        usual, table = scores(healthy), {}
        for name, batch in others.items():
            labels = [0] * len(healthy) + [1] * len(batch)
            pairs = {k: torch.cat([usual[k], v]).tolist() for k, v in scores(batch).items()}
            table[name] = {k: float(roc_auc_score(labels, v)) for k, v in pairs.items()}
        return table


@register(
    "ood_blind_spot",
    paper="Heer 2021",
    dims=(2, 3),
    presets={
        "laptop": {
            **{k: v for k, v in TINY.items() if k != "preprocess"},
            "size": 64, "latent": 32, "steps": 400, "kl_weight": 0.01,
            "preprocess": {**TINY["preprocess"], "scaling": "median"},
        }
    },
    preprocess={"scaling": "minmax", "limit": 1.0, "crop": "none", "fit": "stretch"},
    tiny={**TINY, "kl_weight": 0.01},
    options=VOLUME(latent=128, batch_size=128, epochs=100),
)  # fmt: skip
def typical_vae(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 1.0,
    statistics: tuple[Statistic, ...] = STATISTICS,
    **options: Unpack[Volume],
) -> Method:
    """Variational autoencoder whose statistics say whether a scan is like those it was trained on.

    Heer, Postels, Chen, Konukoglu and Albarqouni, MIDL 2021, on T2-weighted slices of 128 pixels:
    detectors are asked of scans of other contrasts, with noise or of other things altogether, and
    the usual scores, error, divergence, their bound, take many of these for normal. The density of
    states (DoSE) finds them: the densities of several statistics among healthy scans, summed, of
    which the entropy of the residual is one, since lesions are local and shifts are not. The
    network is that of Baur et al., the error a mean over the brain, the divergence over the code.
    The score is minus that sum, the map what is brighter than its restoration.
    ``Typical.blind_spots`` is the study: it tells how each score ranks scans that are given.

    Departures:
        beta: constant; it rises to 1 over the first 2,000 updates in the release.
        mask: the foreground from the first update on; from a given update on in the release.
        entropy: 0 where the foreground has 10 pixels or fewer; the smallest of the batch in the
            release.
        WAIC: the release's score by an ensemble isn't here.
        bound: error minus divergence, as the release has it.
        third axis: ours.

    Args:
        size: pixels along each axis, a power of two times 8.
        width: channels of the first convolution; the widest has four times as many.
        kl_weight: of the mean divergence beside the mean error.
        statistics: whose densities are summed: ``kl``, ``error``, ``bound``, ``entropy``.
    """
    code, levels = Code(options["latent"], 2), Levels(options["width"], slope=0.01)
    network = BaurAutoencoder(dims, channels, options["size"], code, levels, dropout=0.0)
    return Typical(
        network, lambda restored, batch: {}, positive, options, statistics=tuple(statistics),
        kl_weight=kl_weight, kl_sum=False, log_variance=True, inference="sample", samples=1,
    )  # fmt: skip
