"""One phase with Adam: the training that most networks share, and its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, cast, get_type_hints

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


def settings(**changes: Any) -> Schedule:
    """The shared arguments with some of them changed, for a stage that has its own.

    Raises:
        ValueError: no such argument.
    """
    return cast(Schedule, dict(schedule(**changes).defaults))


def with_training(
    group: type, defaults: Mapping[str, Any], descriptions: Mapping[str, str], **training: Any
) -> Options:
    """Return a group of arguments that has those of ``schedule`` in it.

    Args:
        group: a ``TypedDict`` that extends ``Schedule``.
        defaults: of its own arguments.
        descriptions: of its own arguments.
        **training: defaults of the shared arguments that differ.
    """
    shared = schedule(**training)
    return Options(
        get_type_hints(group),
        {**defaults, **shared.defaults},
        {**descriptions, **shared.descriptions},
    )


def phase(
    modules: nn.Module | list[nn.Module],
    training: Schedule,
    name: str = "reconstruct",
    part: str = "healthy",
    clip: float | None = None,
    keep: Literal["best", "last"] | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    rhythm: Callable[[int, int], float] | None = None,
) -> Phase:
    """One phase in which Adam trains the modules, by the shared arguments.

    Args:
        modules: what is trained.
        training: the shared arguments.
        name: of the phase, passed to ``Method.loss``; the player's is ``network``.
        part: of the cohort that batches are drawn from.
        clip: largest norm of the gradient; None for no clipping.
        keep: the weights with the ``best`` healthy validation loss, or the ``last`` ones; None for
            the best with ``patience`` or ``steps``, else the last, as after a fixed number of
            epochs.
        optimizer: Adam or a relative of it.
        rhythm: learning-rate factor as a function of (step, steps).
    """
    lr, decay, betas = training["lr"], training["weight_decay"], (training["beta1"], 0.999)
    steps, patience = training["steps"], training["patience"]
    player = Player(
        "network",
        modules if isinstance(modules, list) else [modules],
        lambda p: optimizer(p, lr=lr, betas=betas, weight_decay=decay),
        schedule=rhythm,
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
        keep=keep or ("best" if patience or steps else "last"),
        patience=patience,
    )
