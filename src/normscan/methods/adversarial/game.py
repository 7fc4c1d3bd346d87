"""Arguments that games between networks share: how long they are played, and what counts in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, get_type_hints

from normscan.methods.base import Phase, Player
from normscan.signatures import Options


class Rounds(TypedDict):
    """The arguments of ``rounds``, for ``**training: Unpack[Rounds]`` in a signature."""

    lr: float
    batch_size: int
    epochs: int
    steps: int | None


rounds = Options(
    get_type_hints(Rounds),
    {"lr": 2e-4, "batch_size": 64, "epochs": 100, "steps": None},
    {
        "lr": "learning rate of Adam, for all players.",
        "batch_size": "images in an update.",
        "epochs": "passes over the training images.",
        "steps": "updates of each player instead of ``epochs``.",
    },
)


class Coded(Rounds):
    """The arguments of ``coded``: rounds of an autoencoder, and the weights of its terms."""

    image: float
    adversarial: float
    code: float


coded = (
    Options(
        get_type_hints(Coded),
        {"image": 50.0, "adversarial": 1.0, "code": 1.0},
        {
            "image": "weight of the restoration.",
            "adversarial": "weight of the discriminator.",
            "code": "weight of the codes.",
        },
    )
    | rounds
)


def played(name: str, players: Sequence[Player], training: Rounds, **more: Any) -> Phase:
    """A phase of these players, as long as the shared arguments say.

    Args:
        name: of the phase.
        players: in their order of play.
        training: the shared arguments.
        **more: fields of the phase, also instead of those of the shared arguments.
    """
    shared = {name: training[name] for name in ("steps", "epochs", "batch_size")}
    return Phase(name, list(players), **{**shared, **more})
