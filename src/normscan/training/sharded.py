"""A network whose parameters lie in parts in the processes: torch's FSDP under the training loop.

Lightning Fabric's own strategies for it want GPUs, or one module that everything goes through. Here
every layer is a unit that is put together while it computes and parted again, whichever way its
network is called.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.base import Method, Phase
from normscan.training.checkpoint import whole
from normscan.training.fabric import alike

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def sharded(method: Method, index: int, fabric: Fabric) -> tuple[Method, Phase]:
    """Return a copy of a method for one phase, with the parameters of its player in parts.

    Args:
        method: whole, the same in all processes; stays as it is.
        index: of the phase.
        fabric: of the processes.

    Raises:
        ArgumentError: several players, or parameters that two modules share.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    phase = method.phases()[index]
    if len(phase.players) > 1:
        names = ", ".join(p.name for p in phase.players)
        error = ArgumentError(
            f"phase '{phase.name}' trains {names} against each other; fsdp trains one at a time. Use "
            "--strategy ddp."
        )
        raise alike(fabric, error)
    trainable = {name for name, p in method.named_parameters() if p.requires_grad}
    mesh = init_device_mesh(fabric.device.type, (fabric.world_size,))
    try:
        parted = copy.deepcopy(method).to(fabric.device)
        phase = parted.phases()[index]
        for name, p in parted.named_parameters():
            p.requires_grad_(name in trainable)
        for unit in dict.fromkeys(u for m in phase.players[0].modules for u in units(m)):
            fully_shard(unit, mesh=mesh)
    except (AssertionError, RuntimeError, TypeError, ValueError) as cause:
        reason = " ".join(str(cause).split())[:200]
        error = ArgumentError(
            f"this method can't be parted by fsdp ({reason}). Use --strategy ddp."
        )
        raise alike(fabric, error) from cause
    return parted, phase


def units(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules that hold parameters of their own, or read those of their parts."""
    own = next(module.parameters(recurse=False), None)
    if own is not None or getattr(module, "one_unit", False):
        yield module
        return
    for child in module.children():
        yield from units(child)


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimiser with whole tensors; all processes must ask for it."""
    state = optimizer.state_dict()
    kept = {
        number: {k: whole(v) if isinstance(v, Tensor) else v for k, v in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": kept}


def parted_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a whole state with its tensors parted as the optimiser's parameters are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part(value: Any, p: Tensor) -> Any:
        if isinstance(p, DTensor) and isinstance(value, Tensor) and value.shape == p.shape:
            return distribute_tensor(value.to(p.device), p.device_mesh, p.placements)
        return value

    kept = {
        number: {k: part(v, parameters[int(number)]) for k, v in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": kept}


@contextmanager
def explained(fabric: Fabric) -> Iterator[None]:
    """Say what it means that a method reads parameters past the layer that holds them."""
    try:
        yield
    except RuntimeError as cause:
        if "DTensor" not in str(cause):
            raise
        error = ArgumentError(
            "this method reads parameters past the layer that holds them, so fsdp can't put them "
            "together in time. Use --strategy ddp."
        )
        raise alike(fabric, error) from cause
