"""What a stored detector may take while it is built: about as much as its weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from normscan.methods.base import Method

# Beside what is stored a method may make tables that it doesn't store, and tensors on the way.
SPARE_VALUES, SPARE_TENSORS = 2**28, 20_000
TIMES_VALUES, TIMES_TENSORS = 8, 20
_MAKERS = (
    "empty",
    "zeros",
    "ones",
    "full",
    "rand",
    "randn",
    "randint",
    "eye",
    "arange",
    "linspace",
)


class Allowance(TorchDispatchMode):
    """Bounds what may be made while a method is built for weights that lie in a file.

    A network is about as large as its weights: one that asks for far more memory, or for far more
    tensors, is stopped before it gets them.

    Args:
        path: safetensors file; its header alone is read.

    Raises:
        ValueError: no such file, inside the block a network that is too large.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                self.kinds = {name: str(one.get_dtype()) for name, one in slices.items()}
                sizes = [math.prod(one.get_shape()) for one in slices.values()]
        except Exception as error:  # it raises kinds of its own
            raise ValueError(f"{path.name} can't be read ({error})") from error
        self.values = TIMES_VALUES * sum(sizes) + SPARE_VALUES
        self.tensors = TIMES_TENSORS * len(sizes) + SPARE_TENSORS

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _MAKERS:
            first = args[0] if args else 0
            self.values -= math.prod(first) if isinstance(first, list | tuple) else 0
            self.tensors -= 1
            if self.values < 0 or self.tensors < 0:
                raise ValueError("its arguments make a far larger network than its weights are of")
        return func(*args, **(kwargs or {}))

    def check_kinds(self, method: Method) -> None:
        """Refuse weights that would have to be cast from another kind of number.

        Between floats of different sizes they may be: training in half precision stores those.

        Raises:
            ValueError: names the tensor.
        """
        for name, value in method.state_dict().items():
            kind = self.kinds.get(name, "")
            floats = kind.startswith(("F", "BF")), value.dtype.is_floating_point
            if kind and (floats[0] != floats[1] or kind.startswith("C") != value.is_complex()):
                raise ValueError(f"{name} is stored as {kind}, and is {value.dtype}")
