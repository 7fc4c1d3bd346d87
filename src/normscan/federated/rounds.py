"""What a round trains and what it shares; knows nothing of Flower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from normscan.errors import ArgumentError
from normscan.methods.base import Method, Phase, Player


def shared_parameters(method: Method) -> dict[str, nn.Parameter]:
    """Return by name the parameters that leave a site.

    Those of the modules that ``Method.shared`` names, of the method or of one inside it (of a
    wrapper), else all. Never a buffer, such as the statistics of a batch norm or a
    memory bank, and never a parameter that the method froze.
    """
    told = [m.shared() for m in method.modules() if isinstance(m, Method)]
    modules = [module for some in told if some is not None for module in some] or [method]
    chosen = {id(p) for module in modules for p in module.parameters() if p.requires_grad}
    return {name: p for name, p in method.named_parameters() if id(p) in chosen}


def plan(phases: Sequence[Phase], rounds: int, samples: int) -> list[int]:
    """Return the number of the phase that each round trains, in proportion to their lengths.

    Raises:
        ArgumentError: there are no phases, one has several players, or one would get no round.
    """
    if not phases:
        raise ArgumentError("this method trains no network, so there is nothing to federate.")
    several = next((p for p in phases if len(p.players) > 1), None)
    if several is not None:
        names = ", ".join(player.name for player in several.players)
        raise ArgumentError(
            f"phase '{several.name}' trains {names} against each other; only methods with one "
            "player in each phase can be federated."
        )
    steps = [max(1, p.total_steps(samples)) for p in phases]
    middles = [(r + 0.5) / rounds * sum(steps) for r in range(rounds)]
    result = [sum(m >= sum(steps[: i + 1]) for i in range(len(phases))) for m in middles]
    if set(result) != set(range(len(phases))):
        raise ArgumentError(
            f"rounds is {rounds}, too few for the method's {len(phases)} phases of "
            f"{', '.join(map(str, steps))} steps: each needs a round."
        )
    return result


def round_phase(phases: Sequence[Phase], order: Sequence[int], number: int, epochs: int) -> Phase:
    """Return the phase of a round: ``epochs`` local passes, the last weights kept.

    The learning rate's schedule runs over all rounds of the phase, as over one long training.

    Args:
        phases: of the method.
        order: from ``plan``.
        number: of the round, from 0.
        epochs: local passes in a round.
    """
    index = order[number]
    before, count = order[:number].count(index), order.count(index)
    phase = phases[index]
    return replace(
        phase,
        players=[_continued(phase.players[0], before, count)],
        steps=None,
        epochs=epochs,
        validate_every=0,
        keep="last",
        patience=None,
    )


def _continued(player: Player, before: int, count: int) -> Player:
    """A player whose learning rate goes on where the rounds before left it."""
    schedule = player.schedule
    if schedule is None:
        return player
    return replace(
        player, schedule=lambda step, steps: schedule(before * steps + step, count * steps)
    )
