"""Devices, processes and precision: Lightning Fabric, started, or one device without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from normscan.errors import ArgumentError, NormscanError

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

Strategy = Literal["ddp", "fsdp"]
# What gloo and NCCL say where the other end is gone.
GONE = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "ProcessGroup")


class Alone:
    """What the training loop asks of Fabric, for one process in float32, where it does nothing.

    Importing Lightning Fabric takes as long as training a small detector.

    Args:
        device: where tensors lie.
    """

    global_rank, world_size, is_global_zero = 0, 1, True
    sharded = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.strategy = self.precision = self

    def launch(self) -> None:
        """There is no other process to start."""

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in float32."""
        return nullcontext()

    def broadcast(self, value: Any) -> Any:
        """Return what the first process has."""
        return value

    def setup_optimizers(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return it as it is."""
        return optimizer

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients."""
        loss.backward()

    def clip_gradients(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
    ) -> None:
        """Clip the norm of all gradients of an optimiser together, as Fabric does."""
        from torch.nn.utils import clip_grad_norm_

        trained = [p for group in optimizer.param_groups for p in group["params"]]
        clip_grad_norm_(trained, max_norm, error_if_nonfinite=True)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is to be kept of the precision."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


def launch_fabric(
    device: str, devices: int, precision: str, nodes: int = 1, strategy: Strategy = "ddp"
) -> Fabric:
    """Start Lightning Fabric on a device with a number of processes; see ``check_machine``.

    Raises:
        ArgumentError: no such device or precision here.
    """
    fabric = check_machine(device, devices, precision, nodes, strategy)
    with _explained(device, devices, precision):
        fabric.launch()
    return fabric


def check_machine(
    device: str, devices: int, precision: str, nodes: int = 1, strategy: Strategy = "ddp"
) -> Fabric:
    """Return Lightning Fabric, not started yet, or refuse what this machine hasn't got.

    One process in float32 on the CPU, CUDA or MPS gets ``Alone`` in its place.

    Args:
        device: auto, cpu, cuda, ..., or one of several, ``cuda:1``.
        devices: number of processes on each machine.
        precision: of Lightning Fabric.
        nodes: number of machines.
        strategy: ``ddp``: each process holds the whole network; ``fsdp``: a part of it.

    Raises:
        ArgumentError: no such device or precision here, one process with fsdp, or several
            machines without a launcher.
    """
    if nodes < 1 or (nodes > 1 and not {"RANK", "SLURM_PROCID"} & set(os.environ)):
        raise ArgumentError(
            f"nodes is {nodes}: several machines are started by torchrun or srun, which say to each "
            "process which it is."
        )
    if strategy == "fsdp" and (devices * nodes == 1 or precision == "16-mixed"):
        raise ArgumentError(
            "strategy fsdp parts a network among several processes (--devices 2), in 32-true or "
            "bf16-mixed."
        )
    check_device(device)
    kind, _, number = device.partition(":")
    if number and devices * nodes > 1:
        raise ArgumentError(f"device '{device}' names one, but devices is {devices}: name {kind}.")
    if devices * nodes == 1 and precision == "32-true" and (one := _known_device(kind, number)):
        return Alone(one)
    from lightning_fabric import Fabric

    with _explained(device, devices, precision):
        fabric = Fabric(
            accelerator=kind,
            devices=[int(number)] if number else devices,
            num_nodes=nodes,
            precision=precision,
            strategy="ddp" if devices * nodes > 1 else "auto",
        )
        # Fabric starts the processes; `training.sharded` parts the network.
        fabric.sharded = strategy == "fsdp"
        return fabric


def _known_device(kind: str, number: str) -> torch.device | None:
    """Return a device that torch alone can start, or None."""
    import torch

    gpu = "cuda" if torch.cuda.is_available() else ""
    gpu = gpu or ("mps" if torch.backends.mps.is_available() else "")
    name = {"auto": gpu or "cpu", "gpu": gpu, "mps": gpu if gpu == "mps" else ""}.get(kind, kind)
    if name == "cuda":
        return torch.device("cuda", int(number or 0))
    return torch.device(name) if name in ("cpu", "mps") and not number else None


def check_device(device: str) -> None:
    """Refuse a CUDA device that isn't there, and what is no device at all.

    Raises:
        ArgumentError: it isn't.
    """
    import torch

    kind, colon, number = device.partition(":")
    if colon and not number.isdecimal():
        raise ArgumentError(f"device '{device}': write a number behind the colon, such as cuda:0.")
    there = torch.cuda.device_count()
    if kind in ("cuda", "gpu") and (not there or (number and int(number) >= there)):
        what = "no CUDA device" if not there else f"{there}, counted from cuda:0"
        raise ArgumentError(
            f"device '{device}' can't be used: torch sees {what} on this machine. Use --device cpu, "
            "or auto for what there is."
        )


@contextmanager
def _explained(device: str, devices: int, precision: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(
            f"device '{device}' x {devices} with precision '{precision}' can't be used: {reason}"
        ) from error
    except Exception as error:
        if type(error).__name__ == "MisconfigurationException":
            raise ArgumentError(f"device '{device}' can't be used here: {error}") from error
        raise


def alike(fabric: Fabric, error: NormscanError) -> BaseException:
    """Return what a process raises where all meet the same error: the first says it, the others end."""
    return error if fabric.is_global_zero else SystemExit(1)


@contextmanager
def together() -> Iterator[None]:
    """Say what it means that another process of the training is gone.

    Raises:
        NormscanError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist

        several = dist.is_available() and dist.is_initialized()
        if not several or not any(word in str(error) for word in GONE):
            raise
        raise NormscanError(
            "another process of this training ended, so all end. Its own message says why; without one "
            "it was killed, mostly for want of memory. The same command with --resume goes on."
        ) from error
