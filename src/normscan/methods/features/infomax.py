"""Few anomalies told from the healthy on codes of Deep InfoMax."""

from __future__ import annotations

from typing import TypedDict, Unpack, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.objectives.deviation import deviation_loss, references
from normscan.registry import register
from normscan.signatures import Options

KERNEL, CONVS = 4, 4
NEGLIGIBLE = 1e-7  # keeps logarithms finite


class InfomaxEncoder(nn.Module):
    """Four 4 x 4 convolutions without padding, and a linear layer to the code.

    Args:
        channels: of the image.
        size: pixels along each axis.
        latent: numbers in the code.
        width: channels of the first convolution; they double.
    """

    def __init__(self, channels: int, size: int, latent: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(CONVS)]
        self.first = nn.Sequential(
            nn.Conv2d(channels, widths[0], KERNEL), nn.ReLU(),
            nn.Conv2d(widths[0], widths[1], KERNEL), nn.BatchNorm2d(widths[1]), nn.ReLU(),
        )  # fmt: skip
        self.rest = nn.Sequential(
            nn.Conv2d(widths[1], widths[2], KERNEL), nn.BatchNorm2d(widths[2]), nn.ReLU(),
            nn.Conv2d(widths[2], widths[3], KERNEL), nn.BatchNorm2d(widths[3]), nn.ReLU(),
        )  # fmt: skip
        left = size - CONVS * (KERNEL - 1)
        self.code = nn.Linear(widths[3] * left**2, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, latent) and the features (B, 2 width, size - 6, size - 6) on the way."""
        features = self.first(x)
        return self.code(self.rest(features).flatten(1)), features


class Judges(nn.Module):
    """Whether a code and features belong together: as a whole and at each place.

    Args:
        size: pixels of the image along each axis.
        latent: numbers in the code.
        width: channels of the encoder's first convolution.
        hidden: units of the layers.
    """

    def __init__(self, size: int, latent: int, width: int, hidden: int) -> None:
        super().__init__()
        left, narrow = size - 2 * (KERNEL - 1) - 4, max(1, width // 2)
        self.seen = nn.Sequential(
            nn.Conv2d(2 * width, width, 3), nn.ReLU(), nn.Conv2d(width, narrow, 3), nn.Flatten()
        )
        self.whole = nn.Sequential(
            nn.Linear(narrow * left**2 + latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden),
            nn.ReLU(), nn.Linear(hidden, 1),
        )  # fmt: skip
        self.local = nn.Sequential(
            nn.Conv2d(2 * width + latent, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(), nn.Conv2d(hidden, 1, 1),
        )  # fmt: skip

    def forward(self, code: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the whole (B, 1) and of each place (B, 1, h, w)."""
        spread = code[:, :, None, None].expand(-1, -1, *features.shape[2:])
        return (
            self.whole(torch.cat([code, self.seen(features)], 1)),
            self.local(torch.cat([features, spread], 1)),
        )


def mutual(together: Tensor, apart: Tensor) -> Tensor:
    """Negative Jensen-Shannon bound of mutual information by the logits of a judge."""
    return F.softplus(-together).mean() + F.softplus(apart).mean()


def normed_perceptron(*widths: int) -> nn.Sequential:
    """Linear layers, ReLU and then batch norm between them."""
    parts: list[nn.Module] = []
    for a, b in zip(widths[:-2], widths[1:-1], strict=True):
        parts += [nn.Linear(a, b), nn.ReLU(), nn.BatchNorm1d(b)]
    return nn.Sequential(*parts, nn.Linear(widths[-2], widths[-1]))


class Deviating(TypedDict):
    """The arguments of ``deviating``, for ``**training: Unpack[Deviating]`` in a signature."""

    lr: float
    batch_size: int
    epochs: int
    steps: int | None
    pretraining_lr: float
    pretraining_epochs: int
    pretraining_steps: int | None


deviating = Options(
    get_type_hints(Deviating),
    {
        "lr": 1e-4, "batch_size": 64, "epochs": 1100, "steps": None, "pretraining_lr": 1e-4,
        "pretraining_epochs": 1000, "pretraining_steps": None,
    },
    {
        "lr": "learning rate of Adam, first momentum 0, for the score.",
        "batch_size": "images in an update, half of them anomalous in the second phase.",
        "epochs": "passes over the healthy and the few anomalous images for the score.",
        "steps": "number of updates of the score instead.",
        "pretraining_lr": "learning rate of Adam for the encoder.",
        "pretraining_epochs": "passes over the healthy images for the encoder.",
        "pretraining_steps": "number of updates of the encoder instead.",
    },
)  # fmt: skip


class DeviatingCodes(Method):
    """Deep InfoMax on the healthy, then a score that deviates on anomalies; see ``fsad_net``."""

    def __init__(
        self,
        encoder: InfomaxEncoder,
        judges: Judges,
        latent: int,
        margin: float,
        draws: int,
        training: Deviating,
    ) -> None:
        super().__init__()
        self.encoder, self.judges, self.latent = encoder, judges, latent
        self.prior = nn.Sequential(
            nn.Linear(latent, 1000), nn.ReLU(), nn.Linear(1000, 200), nn.ReLU(),
            nn.Linear(200, 1), nn.Sigmoid(),
        )  # fmt: skip
        self.scorer = normed_perceptron(latent, 1000, 200, 20, 1)
        for layer in self.scorer:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.margin, self.draws, self.training_options = margin, draws, training

    def phases(self) -> list[Phase]:
        given = self.training_options
        slow = adam(given["pretraining_lr"])
        score = Player("score", [self.scorer], adam(given["lr"], betas=(0.0, 0.9)))
        return [
            Phase(
                "infomax",
                [Player("prior", [self.prior], slow), Player("encoder", [self.encoder, self.judges], slow)],
                given["pretraining_steps"], given["pretraining_epochs"], given["batch_size"],
            ),
            Phase(
                "deviate", [score], given["steps"], given["epochs"], given["batch_size"],
                part="healthy+labelled", balanced=True,
            ),
        ]  # fmt: skip

    def codes(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and features of images in 0..1."""
        found: tuple[Tensor, Tensor] = self.encoder(2 * image - 1)
        return found

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if phase == "deviate":
            assert batch.label is not None
            with torch.no_grad():
                codes = self.codes(batch.image)[0]
            drawn = references(batch.rng, self.draws).to(codes)
            score, anomalous = self.scorer(codes)[:, 0], batch.label == 1
            return {"deviation": deviation_loss(score, anomalous, drawn, self.margin).mean()}
        codes, features = self.codes(batch.image)
        told = self.prior(codes.detach() if player == "prior" else codes)
        fake = (1 - told).clamp_min(NEGLIGIBLE).log().mean()
        if player == "prior":
            drawn = batch.rng.uniform(codes.shape).to(codes)
            return {"real": -self.prior(drawn).clamp_min(NEGLIGIBLE).log().mean(), "fake": -fake}
        together, apart = self.judges(codes, features), self.judges(codes, features.roll(-1, 0))
        return {
            "whole": 0.5 * mutual(together[0], apart[0]),
            "local": mutual(together[1], apart[1]),
            "adversarial": 0.1 * fake,
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        return Maps(score=self.scorer(self.codes(batch.image)[0])[:, 0])


@register(
    "fsad_net",
    paper="Tian 2020",
    regime="few-anomalies",
    dims=(2,),
    presets={
        "code": {"size": 32},
        "laptop": {
            "size": 32, "width": 16, "hidden": 128, "pretraining_steps": 300, "steps": 300,
            "pretraining_lr": 1e-3, "lr": 1e-3, "batch_size": 32,
        },
    },
    preprocess={"scaling": "file", "crop": "none", "fit": "cover"},
    tiny={
        "size": 32, "width": 8, "hidden": 32, "latent": 32, "pretraining_steps": 60, "steps": 100,
        "pretraining_lr": 1e-2, "lr": 1e-2, "batch_size": 16,
    },
    options=deviating,
)  # fmt: skip
def fsad_net(
    dims: int = 2,
    channels: int = 1,
    size: int = 64,
    latent: int = 64,
    width: int = 64,
    hidden: int = 512,
    margin: float = 6.0,
    draws: int = 15_000,
    **training: Unpack[Deviating],
) -> Method:
    """Few anomalies told from the healthy on codes that know most of their image (FSAD-Net).

    Tian et al., MICCAI 2020, on colonoscopy with 30 to 80 frames with polyps beside 13,250 without:
    Deep InfoMax teaches an encoder of four 4 x 4 convolutions codes of 64 numbers that tell most of
    their image's features, as a whole (0.5) and at each place (1), and are spread like a uniform prior
    (0.1). The encoder is then frozen, and a perceptron of 1000, 200 and 20 units learns a score:
    healthy ones at the mean of 15,000 standard normal draws, those of polyps 6 deviations above it.
    Adam 1e-4 with no first momentum, batches of 64 with as many polyps as others, 1100 epochs. There
    is no map. ``code`` has the release's 32 pixels.

    Departures:
        infomax: weights, rate and the opponent of the prior are those of Deep InfoMax; the release has
            its judges, but loads a trained encoder.
        pixels: 64, as in the article.
        epochs: of the encoder ours; the release loads that of epoch 5660.

    Args:
        size: pixels along each axis, 17 or more.
        latent: numbers in a code.
        width: channels of the encoder's first convolution; they double three times.
        hidden: units of the judges of mutual information.
        margin: of anomalous scores, in deviations of the reference.
        draws: of the reference in each update.
    """
    least = CONVS * (KERNEL - 1) + 5
    if size < least:
        raise ArgumentError(
            f"size={size}: the judges need {least} pixels. Use size={least} or more."
        )
    return DeviatingCodes(
        InfomaxEncoder(channels, size, latent, width), Judges(size, latent, width, hidden), latent,
        margin, draws, training,
    )  # fmt: skip
