"""Pretrained backbones: named taps, exact weights, from the hub or from a local file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError, WeightsError
from normscan.networks.sources import loaded, packaged, read_weights
from normscan.networks.taps import import_timm, tapped

__all__ = ["Backbone", "comes_from_state", "import_timm", "read_weights", "weights_from_state"]

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


def comes_from_state() -> bool:
    """Whether a saved detector brings the weights of what is built now."""
    return _from_state.get()


class Backbone(nn.Module):
    """Feature maps of a pretrained network at named places, up to the last of them.

    Convolutional networks come from timm and are tapped at their stages (``layer1`` ...; an error
    lists them). Vision transformers come from timm (``vit_small_patch14_dinov2.lvd142m``) or, with
    the prefix ``hf:``, from transformers (``hf:facebook/dinov2-small``); their taps are
    ``blocks.N``, the tokens as block N leaves them, or ``norm``, the last ones normalised. For any
    network of timm ``last`` is the feature map that its classifier pools (EfficientNet's 1280
    channels) and ``pooled`` what the classifier gets, one vector as a map of one cell.

    Args:
        name: timm name with its weight tag, for example ``resnet18.tv_in1k``, or ``hf:`` and a name.
        taps: places, in the order of the network.
        weights: ``hub`` loads the tag's weights from the cache of the Hugging Face hub, else from
            the hub; ``pip:efficientnet-lite0`` and ``pip:vgg16`` from an installed package;
            ``random`` keeps the initial ones (for tests); anything else is the path of a
            ``.safetensors`` or PyTorch state dict, which must hold every layer up to the last tap,
            or of a folder with ``model.safetensors``.
        channels: of the image. One is repeated to three; for other numbers the first layer's
            filters are repeated and scaled, as timm does.
        trainable: learn its weights; else they are frozen.
        batch_norm: ``frozen`` keeps the statistics and normalises with them, also while the weights
            train; ``train`` follows the module's mode.
        scaling: ``imagenet`` subtracts its mean and divides by its deviation; ``centred`` is 2x - 1;
            ``none`` takes the image as it is. Weights of a package (``pip:``) were trained on an
            input of their own, which they get whatever this says.

    Attributes:
        channels: of the features, by tap.
        strides: pixels to a cell, by tap.
        prefix: class and register tokens that a transformer puts before its patch tokens.
        remembers: give the features of the last images again where the same come again, for several
            methods that share a frozen network.

    Raises:
        ArgumentError: unknown network or tap.
        WeightsError: weights that aren't there or don't fit; says what to fetch and where to put it.
    """

    def __init__(
        self,
        name: str,
        taps: Sequence[str],
        weights: str = "hub",
        *,
        channels: int = 3,
        trainable: bool = False,
        batch_norm: Literal["frozen", "train"] = "frozen",
        scaling: Literal["imagenet", "centred", "none"] = "imagenet",
    ) -> None:
        super().__init__()
        source = packaged(weights, name)
        self.taps, self.batch_norm = tuple(taps), batch_norm
        self.scaling = scaling if source is None else "given"
        self.trainable, self.remembers = trainable, False
        self._last: tuple[Tensor, dict[str, tuple[Tensor, Tensor | None]]] | None = None
        self.inputs = 3 if channels == 1 else channels
        self.network, self.reader = tapped(name, self.taps, self.inputs)
        self.prefix = self.reader.prefix
        if not _from_state.get() and weights != "random":
            self._load(name, weights)
        cycle = [k % 3 for k in range(self.inputs)]
        given = (IMAGENET_MEAN, IMAGENET_STD) if source is None else (source.mean, source.std)
        for key, values in zip(("mean", "std"), given, strict=True):
            tensor = torch.tensor([values[k] for k in cycle]).reshape(1, -1, 1, 1)
            self.register_buffer(key, tensor, persistent=False)
        self.requires_grad_(trainable)
        self.train(False)
        with torch.no_grad():
            side = 2 * self.reader.patch if self.reader.patch else 64
            probe = self.reader(self.network, torch.zeros(1, self.inputs, side, side))
        self.channels = [f.shape[1] for f, _ in probe]
        self.strides = [side // f.shape[-1] for f, _ in probe]

    def _load(self, name: str, weights: str) -> None:
        wanted = self.network.state_dict()
        state = loaded(weights, name, wanted)
        state = fitted_input(renamed(state, wanted), wanted, self.inputs)
        lacking = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
        lacking = [k for k in lacking if not k.endswith("num_batches_tracked")]
        if lacking:
            raise WeightsError(
                f"the weights {weights!r} don't fit {name} up to {self.taps[-1]}: "
                f"{len(lacking)} tensors are missing or of another shape, such as '{lacking[0]}'."
            )
        self.network.load_state_dict({k: state.get(k, v) for k, v in wanted.items()})

    def train(self, mode: bool = True) -> Backbone:
        """Change the mode; what is frozen stays in evaluation mode."""
        super().train(mode and self.trainable)
        if self.batch_norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps (B, channels, H / stride, W / stride) by tap.

        Args:
            x: (B, C, H, W) in about 0..1. A transformer's sides are cut down to whole patches.

        Raises:
            ArgumentError: another number of channels.
        """
        return {tap: features for tap, (features, _) in self.tokens(x).items()}

    def tokens(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Like ``forward``, with a transformer's class and register tokens (B, prefix, channels)."""
        if x.shape[1] not in (1, self.inputs):
            raise ArgumentError(
                f"this backbone takes 1 or {self.inputs} channels, not {x.shape[1]}. Choose one "
                f"modality, or build it with channels={x.shape[1]}."
            )
        if not self.remembers or x.requires_grad:
            return self._tokens(x)
        if self._last is None or not _same(self._last[0], x):
            self._last = (x.clone(), self._tokens(x))
        return dict(self._last[1])

    def _tokens(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        x = x.expand(-1, self.inputs, -1, -1)
        assert isinstance(self.mean, Tensor) and isinstance(self.std, Tensor)
        if self.scaling in ("imagenet", "given"):
            x = (x - self.mean) / self.std
        elif self.scaling == "centred":
            x = 2 * x - 1
        if patch := self.reader.patch:
            x = x[..., : x.shape[-2] // patch * patch, : x.shape[-1] // patch * patch]
        return dict(zip(self.taps, self.reader(self.network, x), strict=True))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)


def renamed(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names of a network that timm has cut for its features.

    timm takes sequences apart there: ``features.0.weight`` of a VGG becomes ``features_0.weight``.
    """
    flat = {key.replace(".", "_"): tensor for key, tensor in state.items()}
    pairs = ((key, key.replace(".", "_")) for key in wanted if key not in state)
    return {**state, **{key: flat[name] for key, name in pairs if name in flat}}


def fitted_input(
    state: dict[str, Tensor], wanted: dict[str, Tensor], channels: int
) -> dict[str, Tensor]:
    """Return weights whose first convolution takes so many channels, if it is the one that differs.

    Its filters are repeated over the channels and scaled by 3 over their number, as timm does: their
    sum stays where the number is one or a multiple of three, and nearly so else.
    """
    from timm.models import adapt_input_conv

    state = dict(state)
    for key, tensor in wanted.items():
        given = state.get(key)
        if given is None or given.shape == tensor.shape or tensor.ndim != 4:
            continue
        if given.shape[1] == 3 and tensor.shape[1] == channels:
            state[key] = adapt_input_conv(channels, given)
    return state
