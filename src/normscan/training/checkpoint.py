"""State to one safetensors file and back: tensors as they are, everything else as JSON beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from normscan.errors import OutputError, ScanError
from normscan.io.atomic import atomic_path


def pack(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Return a JSON-able copy of nested dictionaries and lists; tensors go into ``tensors``."""
    if isinstance(value, Tensor):
        # A name in a state dict may stand for memory that another one shares: store copies.
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        items = [[k, pack(v, tensors, f"{name}/{k}")] for k, v in value.items()]
        return {"items": items}
    if isinstance(value, list | tuple):
        return [pack(v, tensors, f"{name}/{i}") for i, v in enumerate(value)]
    return value


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo ``pack``."""
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {k: unpack(v, tensors) for k, v in value["items"]}
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    return value


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state to one file, which is there whole or not at all."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(pack(state, tensors))
    write_tensors(path, tensors, {"state": text})


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all, with the rights of any new file."""
    with atomic_path(path) as temporary:
        temporary.touch()
        rights = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # a full disk, which isn't told apart from the rest
            raise OutputError(
                f"{path}: can't be written ({error}). Check the free space and the rights of the folder."
            ) from error
        temporary.chmod(rights)  # safetensors leaves it to its owner alone


def load_state(path: Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote.

    Raises:
        ScanError: the file is damaged or is no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})["state"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state: dict[str, Any] = unpack(json.loads(text), tensors)
    except Exception as error:
        raise ScanError(
            f"{path} is no checkpoint of normscan or is damaged ({error}). Remove its folder and "
            "train again."
        ) from error
    return state


def cpu_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """Copy of a module's state on the CPU, whole where it lies in parts in several processes."""
    return {k: whole(v.detach()).cpu().clone() for k, v in module.state_dict().items()}


def whole(value: Tensor) -> Tensor:
    """Return a tensor that lies in parts as one that doesn't; all processes must ask for it."""
    full = getattr(value, "full_tensor", None)
    return value if full is None else full()
