"""Frozen pretrained backbones: named taps, exact weights, from the hub or from a local file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError, WeightsError, nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_from_state: ContextVar[bool] = ContextVar("weights_from_state", default=False)


@contextlib.contextmanager
def weights_from_state() -> Iterator[None]:
    """Within it backbones are built without weights: a saved detector brings its own."""
    token = _from_state.set(True)
    try:
        yield
    finally:
        _from_state.reset(token)


def import_timm() -> Any:
    """Import timm, also where torchvision's compiled operators don't load.

    timm imports torchvision, whose operators are missing beside a torch of another build
    (``operator torchvision::nms does not exist``). timm's models never call them, so declaring the
    two schemas that torchvision registers metadata for is enough.
    """
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        name = schema.partition("(")[0]
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(schema)
            _libraries.append(library)
    import timm

    return timm


_libraries: list[Any] = []  # A library that is collected takes its schemas along.


class Backbone(nn.Module):
    """Feature maps of a frozen timm network up to its last tap.

    Args:
        name: timm name with its weight tag, for example ``resnet18.tv_in1k``.
        taps: names of the stages, such as ``layer2``.
        weights: ``hub`` loads the tag's weights through timm from the Hugging Face hub or its
            cache; ``random`` keeps the initial ones (for tests); anything else is the path of a
            ``.safetensors`` or PyTorch state dict, which must hold every layer up to the last tap.

    Raises:
        ArgumentError: unknown network or tap.
        WeightsError: weights that aren't there or don't fit; says what to fetch and where to put it.
    """

    def __init__(self, name: str, taps: Sequence[str], weights: str = "hub") -> None:
        super().__init__()
        timm = import_timm()
        stem = name.partition(".")[0]
        if not timm.is_model(stem):
            known = timm.list_models()
            raise ArgumentError(f"timm has no network '{stem}'.{nearest(stem, known)}")
        with torch.random.fork_rng(devices=[]):
            probe = timm.create_model(stem, features_only=True)
        stages = [info["module"] for info in probe.feature_info.info]
        missing = [t for t in taps if t not in stages]
        if missing:
            raise ArgumentError(f"{stem} has no stage '{missing[0]}'; it has {', '.join(stages)}.")
        indices = tuple(stages.index(t) for t in taps)
        self.taps = tuple(taps)
        self.network = timm.create_model(stem, features_only=True, out_indices=indices)
        self.channels = [probe.feature_info.info[i]["num_chs"] for i in indices]
        self.strides = [probe.feature_info.info[i]["reduction"] for i in indices]
        if not _from_state.get() and weights != "random":
            self._load(timm, name, weights)
        self.register_buffer(
            "mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1), persistent=False
        )
        self.requires_grad_(False)
        self.eval()

    def _load(self, timm: Any, name: str, weights: str) -> None:
        state = _hub_weights(timm, name) if weights == "hub" else read_weights(Path(weights), name)
        wanted = self.network.state_dict()
        lacking = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
        lacking = [k for k in lacking if not k.endswith("num_batches_tracked")]
        if lacking:
            raise WeightsError(
                f"the weights {weights!r} don't fit {name} up to {self.taps[-1]}: "
                f"{len(lacking)} tensors are missing or of another shape, such as '{lacking[0]}'."
            )
        self.network.load_state_dict({k: state.get(k, v) for k, v in wanted.items()})

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: a frozen network keeps its batch norm statistics."""
        return super().train(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps (B, channels, H / stride, W / stride) by tap.

        Args:
            x: (B, 1 or 3, H, W) in about 0..1; grey is repeated.

        Raises:
            ArgumentError: another number of channels.
        """
        if x.shape[1] not in (1, 3):
            raise ArgumentError(
                f"a backbone takes 1 or 3 channels, not {x.shape[1]}. Choose one modality."
            )
        assert isinstance(self.mean, Tensor) and isinstance(self.std, Tensor)
        x = (x.expand(-1, 3, -1, -1) - self.mean) / self.std
        return dict(zip(self.taps, self.network(x), strict=True))


def _hub_weights(timm: Any, name: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
        return state
    except Exception as error:
        raise WeightsError(
            f"the weights of {name} are not on this machine and can't be fetched "
            f"({type(error).__name__}). Fetch model.safetensors of huggingface.co/timm/{name} on a "
            f"machine with access and give its path: --weights PATH."
        ) from error


def read_weights(path: Path, name: str) -> dict[str, Tensor]:
    """Read a state dict of tensors from safetensors or a PyTorch file, never unpickling code.

    Raises:
        WeightsError: no such file, or no state dict in it.
    """
    if not path.is_file():
        raise WeightsError(
            f"there is no weights file {path}. Give the path of a state dict of {name} "
            "(.safetensors or .pth), or --weights hub."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {k: v for k, v in state.items() if isinstance(v, Tensor)}
    except Exception as error:
        raise WeightsError(f"{path} can't be read as a state dict: {error}") from error
