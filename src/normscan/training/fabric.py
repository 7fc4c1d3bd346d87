"""Devices, processes and precision: Lightning Fabric, started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from normscan.errors import ArgumentError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launch_fabric(device: str, devices: int, precision: str) -> Fabric:
    """Start Lightning Fabric on a device with a number of processes.

    Raises:
        ArgumentError: no such device or precision here.
    """
    fabric = check_machine(device, devices, precision)
    with _explained(device, devices, precision):
        fabric.launch()
    return fabric


def check_machine(device: str, devices: int, precision: str) -> Fabric:
    """Return Lightning Fabric, not started yet, or refuse what this machine hasn't got.

    Args:
        device: auto, cpu, cuda, ..., or one of several, ``cuda:1``.
        devices: number of processes.
        precision: of Lightning Fabric.

    Raises:
        ArgumentError: no such device or precision here.
    """
    from lightning_fabric import Fabric

    check_device(device)
    kind, _, number = device.partition(":")
    if number and devices > 1:
        raise ArgumentError(f"device '{device}' names one, but devices is {devices}: name {kind}.")
    with _explained(device, devices, precision):
        return Fabric(
            accelerator=kind,
            devices=[int(number)] if number else devices,
            precision=precision,
            strategy="ddp" if devices > 1 else "auto",
        )


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
