"""Devices, processes and precision: Lightning Fabric, started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.errors import ArgumentError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launch_fabric(device: str, devices: int, precision: str) -> Fabric:
    """Start Lightning Fabric on a device with a number of processes.

    Raises:
        ArgumentError: no such device or precision here.
    """
    from lightning_fabric import Fabric

    try:
        fabric = Fabric(
            accelerator=device,
            devices=devices,
            precision=precision,
            strategy="ddp" if devices > 1 else "auto",
        )
        fabric.launch()
    except (ValueError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(
            f"device '{device}' x {devices} with precision '{precision}' can't be used: {reason}"
        ) from error
    except Exception as error:
        if type(error).__name__ == "MisconfigurationException":
            raise ArgumentError(f"device '{device}' can't be used here: {error}") from error
        raise
    return fabric
