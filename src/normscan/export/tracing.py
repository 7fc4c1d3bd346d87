"""A method as a function of tensors, which can be traced: its random numbers are inputs, too."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscan.detector.graph import Draw, Pieces, Signature
from normscan.detector.runner import batch_of, resized
from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Method
from normscan.rng import Rng

OPSET = 18


class NotExportableError(ArgumentError):
    """A method, or what it does with some images, has no graph."""


class Recorded(Rng):
    """Draws as ``Rng`` and notes what was drawn."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(list(seeds))
        self.draws: list[Draw] = []

    def normal(self, shape: Sequence[int]) -> Tensor:
        self.draws.append(Draw("normal", _rest(shape)))
        return super().normal(shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        self.draws.append(Draw("uniform", _rest(shape)))
        return super().uniform(shape)

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        self.draws.append(Draw("integers", _rest(shape), (int(low), int(high))))
        return super().integers(low, high, shape)


class Handed(Rng):
    """Hands out tensors that were drawn before, in order."""

    def __init__(self, drawn: Sequence[Tensor]) -> None:
        self.shared = False
        self._drawn = iter(drawn)

    def __getattr__(self, name: str) -> NoReturn:
        if name == "generators":
            raise NotExportableError("it takes seeds of its own from each sample's random numbers")
        raise AttributeError(name)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return next(self._drawn)

    uniform = normal

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        return next(self._drawn)


def _rest(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(n) for n in shape[1:])


class Unread(list[dict[str, Any]]):
    """The cohort's columns: a graph doesn't have them."""

    def __iter__(self) -> NoReturn:
        raise NotExportableError("it reads columns of the cohort, such as an age, for each scan")

    def __getitem__(self, place: Any) -> NoReturn:
        raise NotExportableError("it reads columns of the cohort, such as an age, for each scan")


class Traced(nn.Module):
    """A method as a function of tensors.

    Args:
        method: on the CPU, in evaluation mode.
        inputs: names of the tensors, see ``Signature``.
    """

    def __init__(self, method: Method, inputs: Sequence[str]) -> None:
        super().__init__()
        self.method, self.inputs = method, tuple(inputs)
        self.members: tuple[tuple[str, ...], ...] = ()
        self.training = False  # the exporter puts back what it finds here, and in all below

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return what each member finds, in the order of ``Signature.members``."""
        given: dict[str, Any] = dict(zip(self.inputs, tensors, strict=False))
        rng = Handed(tensors[len(self.inputs) :])
        return self.found(Batch(rng=rng, columns=Unread(), **given))

    def found(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what each member finds in a batch, and note the names."""
        outputs, members = [], []
        size = tuple(batch.image.shape[2:])
        for maps in self.method.each(batch):
            named = {n: getattr(maps, n) for n in ("map", "score", "reconstruction", "uncertainty")}
            present = {n: v.float() for n, v in named.items() if v is not None}
            members.append(tuple(present))
            outputs += [v if n == "score" else resized(v, size) for n, v in present.items()]
        self.members = tuple(members)
        return tuple(outputs)

    def draws(self, pieces: Pieces, seed: int) -> tuple[Draw, ...]:
        """Return the random numbers that it draws for some pieces."""
        batch = batch_of(self.method, pieces, seed)
        batch.rng, batch.columns = Recorded(range(len(pieces))), Unread()
        self.found(batch)
        return tuple(batch.rng.draws)


class Equivalent(TorchFunctionMode):
    """Does without operators that graphs lack: others stand for them, with the same result.

    Args:
        plain: axis from which on sizes are numbers and not part of the graph; None for no such axis.
    """

    def __init__(self, plain: int | None = None) -> None:
        super().__init__()
        self._plain = plain

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = (_OTHERS.get(func) or func)(*args, **(kwargs or {}))
        if self._plain is None or func not in _SIZES:
            return found
        if not isinstance(found, tuple):
            axis = args[1] if len(args) > 1 else (kwargs or {})["dim"]
            return int(found) if axis % args[0].ndim >= self._plain else found
        return torch.Size([n if i < self._plain else int(n) for i, n in enumerate(found)])


def _getter(attribute: str) -> Any:
    """What reading an attribute of a tensor is to ``__torch_function__``."""
    return vars(torch._C.TensorBase)[attribute].__get__


_SIZES = (_getter("shape"), Tensor.size)


def _solved(factor: Tensor, right: Tensor, *, upper: bool, **options: Any) -> Tensor:
    """With a factor that isn't computed from an image: its inverse is one more weight."""
    inverse = np.linalg.inv(factor.detach().numpy().astype(np.float64))
    return torch.from_numpy(inverse).to(right.dtype) @ right


def _pooled(x: Tensor, length: int) -> Tensor:
    """Adaptive means as a product with fixed weights, of any number of rows."""
    ones = torch.eye(int(x.shape[-1]))[None]
    with torch._C.DisableTorchFunctionSubclass():
        weights = nn.functional.adaptive_avg_pool1d(ones, length)[0]
    return x @ weights.to(x.dtype)


def _parted(x: Tensor, size: int | list[int], dim: int = 0) -> Sequence[Tensor]:
    """Parts of a fixed size; graphs take no size that is larger than the whole."""
    if isinstance(size, int) and int(x.shape[dim]) <= size:
        return [x]
    parts: Sequence[Tensor] = x.split(size, dim)
    return parts


def _swapped(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """With axes counted from the front: the exporter doesn't always know how many there are."""
    return x.transpose(dim0 % x.ndim, dim1 % x.ndim)


def _moved(x: Tensor, source: int, destination: int) -> Tensor:
    axes = [axis for axis in range(x.ndim) if axis != source % x.ndim]
    axes.insert(destination % x.ndim, source % x.ndim)
    return x.permute(axes)


def _diagonal(x: Tensor) -> Tensor:
    return torch.eye(len(x)) * x


def _product(*parts: Tensor) -> Tensor:
    """Of numbers that aren't computed from an image."""
    axes = np.meshgrid(*[part.numpy() for part in parts], indexing="ij")
    return torch.from_numpy(np.stack(axes, axis=-1).reshape(-1, len(parts)))


def _cut(
    x: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """Patches (B, C * cells, N) by a convolution that copies each channel: sizes may be unknown."""
    h, w = nn.modules.utils._pair(kernel_size)
    channels = int(x.shape[1])
    copies = torch.eye(h * w, dtype=x.dtype).reshape(-1, 1, h, w).repeat(channels, 1, 1, 1)
    return nn.functional.conv2d(x, copies, None, stride, padding, dilation, channels).flatten(2)


def _windows(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Overlapping parts of an axis, on a new last axis; graphs cut them at fixed places."""
    axis = dimension % x.ndim
    first = torch.arange(0, int(x.shape[axis]) - size + 1, step)
    places = (first[:, None] + torch.arange(size)).flatten()
    parts = x.index_select(axis, places).unflatten(axis, (len(first), size))
    return _moved(parts, axis + 1, -1)


def _turned(x: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    first, second = dims
    for _ in range(k % 4):
        x = x.transpose(first, second).flip(first)
    return x


_OTHERS: dict[Any, Callable[..., Any]] = {
    torch.linalg.solve_triangular: _solved,
    torch.rot90: _turned,
    Tensor.rot90: _turned,
    nn.functional.adaptive_avg_pool1d: _pooled,
    **dict.fromkeys((torch.cosh, Tensor.cosh), lambda x: (x.exp() + (-x).exp()) / 2),
    **dict.fromkeys((torch.sinh, Tensor.sinh), lambda x: (x.exp() - (-x).exp()) / 2),
    **dict.fromkeys((torch.acosh, Tensor.acosh), lambda x: (x + (x * x - 1).sqrt()).log()),
    **dict.fromkeys(
        (torch.asinh, Tensor.asinh), lambda x: x.sign() * (x.abs() + (x * x + 1).sqrt()).log()
    ),
    torch.vdot: lambda a, b: (a * b).sum(),
    torch.transpose: _swapped,
    Tensor.transpose: _swapped,
    Tensor.movedim: _moved,
    Tensor.__iand__: torch.logical_and,
    torch.diag: _diagonal,
    Tensor.diag: _diagonal,
    torch.cartesian_prod: _product,
    Tensor.unfold: _windows,
    nn.functional.unfold: _cut,
    torch.split: _parted,
    Tensor.split: _parted,
    _getter("mT"): lambda x, *_: _swapped(x, -2, -1),
}


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as the operators that it consists of."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def graph_of(
    traced: Traced, pieces: Pieces, signature: Signature, plain: int | None = None
) -> bytes:
    """Return the graph of a method in ONNX, traced with some pieces; ``plain`` see ``Equivalent``.

    Raises:
        NotExportableError: there is none.
    """
    tensors = tuple(torch.from_numpy(array) for array in signature.feeds(pieces))
    names = [*traced.inputs, *(f"draw_{n}" for n in range(len(signature.draws)))]
    outputs = [f"{name}_{k}" for k, member in enumerate(signature.members) for name in member]
    free: dict[str, dict[int, str]] = {}
    for name, tensor in zip([*names, *outputs], [*tensors, *[None] * len(outputs)], strict=True):
        axes = {} if signature.batch else {0: "batch"}
        if not signature.size and tensor is not None and tensor.ndim > 2 and name in traced.inputs:
            axes |= {axis: f"size_{tensor.ndim - axis}" for axis in range(2, tensor.ndim)}
        free[name] = axes
    written: Any = io.BytesIO()  # the exporter's types know paths alone
    with warnings.catch_warnings(), _plain_attention(), torch.no_grad(), Equivalent(plain):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                traced, tensors, written, input_names=names, output_names=outputs,
                dynamic_axes=free, opset_version=OPSET, dynamo=False,
            )  # fmt: skip
        except NotExportableError:
            raise
        except Exception as error:  # it raises kinds of its own
            reason = " ".join(str(error).split())[:300]
            raise NotExportableError(f"torch can't write its graph: {reason}") from error
    model: bytes = written.getvalue()
    return model
