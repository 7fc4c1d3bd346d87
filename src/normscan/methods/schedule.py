"""One phase with Adam: the training that most networks share, and its arguments."""

from __future__ import annotations

from typing import TypedDict, get_type_hints

import torch
from torch import nn

from normscan.methods.base import Phase, Player
from normscan.signatures import Options


class Schedule(TypedDict):
    """The arguments of ``schedule``, for ``**training: Unpack[Schedule]`` in a signature."""

    lr: float
    beta1: float
    weight_decay: float
    batch_size: int
    epochs: int
    steps: int | None
    patience: int | None


# `@register(..., options=schedule(lr=1e-3, epochs=250))`: a method's own defaults.
schedule = Options(
    get_type_hints(Schedule),
    {
        "lr": 1e-4,
        "beta1": 0.9,
        "weight_decay": 0.0,
        "batch_size": 16,
        "epochs": 100,
        "steps": None,
        "patience": None,
    },
    {
        "lr": "learning rate of Adam.",
        "beta1": "first momentum of Adam.",
        "weight_decay": "of Adam.",
        "batch_size": "images in an update.",
        "epochs": "passes over the training images at most.",
        "steps": "number of updates instead of ``epochs``.",
        "patience": "looks at the validation loss without gain before stopping; None for never.",
    },
)


def phase(
    modules: nn.Module | list[nn.Module], training: Schedule, name: str = "reconstruct",
    part: str = "healthy", clip: float | None = None,
) -> Phase:  # fmt: skip
    """One phase in which Adam trains the modules, by the shared arguments.

    With ``patience`` or ``steps`` the weights with the least healthy validation loss are kept, as
    early stopping does; else the last ones, as after a fixed number of epochs.

    Args:
        modules: what is trained.
        training: the shared arguments.
        name: of the phase, passed to ``Method.loss``; the player's is ``network``.
        part: of the cohort that batches are drawn from.
        clip: largest norm of the gradient; None for no clipping.
    """
    lr, decay, betas = training["lr"], training["weight_decay"], (training["beta1"], 0.999)
    steps, patience = training["steps"], training["patience"]
    player = Player(
        "network",
        modules if isinstance(modules, list) else [modules],
        lambda p: torch.optim.Adam(p, lr=lr, betas=betas, weight_decay=decay),
        clip=clip,
    )
    return Phase(
        name,
        [player],
        steps=steps,
        epochs=training["epochs"],
        batch_size=training["batch_size"],
        part=part,
        validate_every="epoch" if steps is None else max(1, steps // 30),
        keep="best" if patience or steps else "last",
        patience=patience,
    )
