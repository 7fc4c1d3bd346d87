"""Networks of timm and transformers, cut behind their last tap, and how their features are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, nearest

# Configurations of transformers' models, so that none has to be fetched to build one.
_DINOV2 = {"patch_size": 14, "image_size": 518}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    f"facebook/dinov2-{suffix}{size}": (
        "dinov2_with_registers" if suffix else "dinov2",
        {
            **_DINOV2, "hidden_size": width, "num_attention_heads": width // 64,
            "num_hidden_layers": depth,
        },
    )
    for suffix in ("", "with-registers-")
    for size, width, depth in (("small", 384, 12), ("base", 768, 12), ("large", 1024, 24))
}  # fmt: skip


def import_timm() -> Any:
    """Import timm, also where torchvision's compiled operators don't load.

    timm imports torchvision, whose operators are missing beside a torch of another build
    (``operator torchvision::nms does not exist``). timm's models never call them, so declaring the
    two schemas that torchvision registers metadata for is enough.
    """
    declare_operators()
    import timm

    return timm


def declare_operators() -> None:
    """Declare torchvision's two operators where they are missing; see ``import_timm``."""
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        name = schema.partition("(")[0]
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(schema)
            _libraries.append(library)


_libraries: list[Any] = []  # A library that is collected takes its schemas along.


@dataclass(frozen=True)
class Reader:
    """How a network's features are read.

    Attributes:
        kind: ``stages`` of a convolutional network, ``tokens`` of timm or of ``transformers``,
            ``last`` for what the pooling of a classifier gets, ``pooled`` for what it gives.
        indices: numbers of the blocks to read.
        normalised: read the last tokens behind the final norm instead.
        prefix: class and register tokens before the patch tokens.
        patch: pixels along the side of a patch; 0 for a convolutional network.
        side: pixels that images are resized to, for a network that takes no others; 0 for any.
    """

    kind: Literal["stages", "tokens", "transformers", "last", "pooled"]
    indices: tuple[int, ...] = ()
    normalised: bool = False
    prefix: int = 0
    patch: int = 0
    side: int = 0

    def __call__(self, network: Any, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Features (B, C, h, w) of each tap with the tokens (B, prefix, C) before the patches."""
        if self.side and x.shape[2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)
        if self.kind == "stages":
            return [(f, None) for f in network(x)]
        if self.kind in ("last", "pooled"):
            found = network.forward_features(x)
            if self.kind == "pooled":
                found = network.forward_head(found, pre_logits=True)[:, :, None, None]
            return [(found, None)]
        if self.kind == "tokens":
            found = network.forward_intermediates(
                x, indices=list(self.indices), norm=self.normalised, return_prefix_tokens=True,
                intermediates_only=True,
            )  # fmt: skip
            return [f if isinstance(f, tuple) else (f, None) for f in found]
        out = network(x, output_hidden_states=True)
        # The first hidden state is the embedding.
        states = [out.hidden_states[i + 1] for i in self.indices]
        states = [out.last_hidden_state] if self.normalised else states
        grid = tuple(n // self.patch for n in x.shape[-2:])
        return [
            (t[:, self.prefix :].transpose(1, 2).unflatten(2, grid), t[:, : self.prefix])
            for t in states
        ]


def tapped(name: str, taps: Sequence[str], channels: int) -> tuple[nn.Module, Reader]:
    """Build a network without weights and what reads its features.

    Args:
        name: timm's, or ``hf:`` and the one of transformers.
        taps: places to read.
        channels: of the image.

    Raises:
        ArgumentError: unknown network or tap.
    """
    if name.startswith("hf:"):
        return _transformer(name.removeprefix("hf:"), taps, channels)
    timm = import_timm()
    stem = name.partition(".")[0]
    if not timm.is_model(stem):
        raise ArgumentError(f"timm has no network '{stem}'.{nearest(stem, timm.list_models())}")
    if tuple(taps) in (("last",), ("pooled",)):
        return _ending(timm, stem, taps[0], channels)
    if stem.startswith(("vit_", "deit")):
        return _tokens(timm, stem, taps, channels)
    if all(re.fullmatch(r"features\.\d+", tap) for tap in taps):
        return Row(timm, stem, taps, channels), Reader("stages")
    with torch.device("meta"):  # Neither weights nor random numbers for what only names its stages.
        info = timm.create_model(stem, features_only=True).feature_info.info
    indices = _places(stem, taps, [str(stage["module"]) for stage in info])
    network = timm.create_model(stem, features_only=True, out_indices=indices, in_chans=channels)
    return network, Reader("stages")


class Row(nn.Module):
    """The first layers of a network in a row, such as VGG, under their names in the whole of it.

    Args:
        timm: the library.
        stem: name of the network.
        taps: layers, such as ``features.22``, relu4_2 of VGG19, in order.
        channels: of the image.

    Raises:
        ArgumentError: it is no such network, or it has no such layer.
    """

    def __init__(self, timm: Any, stem: str, taps: Sequence[str], channels: int) -> None:
        super().__init__()
        with torch.device("meta"):  # The classifier of VGG alone would take 500 MB.
            row = getattr(timm.create_model(stem, in_chans=channels), "features", None)
        known = list(row) if isinstance(row, nn.Sequential) else []
        self.places = [int(tap.partition(".")[2]) for tap in taps]
        missing = [t for t, i in zip(taps, self.places, strict=True) if i >= len(known)]
        if missing:
            names = f"features.0 to features.{len(known) - 1}" if known else "no row of features"
            raise ArgumentError(f"{stem} has no layer '{missing[0]}'; it has {names}.")
        layers = known[: max(self.places) + 1]
        for layer in layers:
            layer.to_empty(device="cpu")
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
                layer.reset_parameters()
            elif isinstance(layer, nn.ReLU):
                layer.inplace = False  # What was tapped before it must stay.
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = {}
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.places:
                found[i] = x
        return [found[i] for i in self.places]


def _places(name: str, taps: Sequence[str], known: list[str]) -> tuple[int, ...]:
    missing = [t for t in taps if t not in known]
    if missing or not taps:
        wrong = missing[0] if missing else ""
        raise ArgumentError(f"{name} has no stage '{wrong}'; it has {', '.join(known)}.")
    return tuple(known.index(t) for t in taps)


def _blocks(name: str, taps: Sequence[str], blocks: int) -> tuple[tuple[int, ...], bool]:
    """Numbers of the blocks to read, and whether behind the final norm, which stands alone."""
    if tuple(taps) == ("norm",):
        return (blocks - 1,), True
    return _places(name, taps, [f"blocks.{i}" for i in range(blocks)]), False


def _tokens(timm: Any, stem: str, taps: Sequence[str], channels: int) -> tuple[nn.Module, Reader]:
    network = timm.create_model(stem, num_classes=0, dynamic_img_size=True, in_chans=channels)
    indices, normalised = _blocks(stem, taps, len(network.blocks))
    if not normalised:
        network.prune_intermediate_layers(list(indices), prune_norm=True, prune_head=True)
    patch = int(network.patch_embed.patch_size[0])
    prefix = int(network.num_prefix_tokens)
    return network, Reader("tokens", indices, normalised, prefix, patch)


def _ending(timm: Any, stem: str, tap: str, channels: int) -> tuple[nn.Module, Reader]:
    """The network without its classifier, up to its last feature map or behind the pooling."""
    free = {"dynamic_img_size": True} if stem.startswith(("vit_", "deit")) else {}
    network = timm.create_model(stem, num_classes=0, in_chans=channels, **free)
    embedding = getattr(network, "patch_embed", None)
    if embedding is None:
        return network, Reader("last" if tap == "last" else "pooled")
    if tap == "last":
        raise ArgumentError(
            f"{stem} is a transformer and has no last feature map. Use taps=pooled for one vector "
            "of an image, or its blocks."
        )
    patch = int(embedding.patch_size[0])
    return network, Reader("pooled", patch=patch, side=0 if free else int(embedding.img_size[0]))


def _transformer(name: str, taps: Sequence[str], channels: int) -> tuple[nn.Module, Reader]:
    transformers = import_transformers()
    if name not in TRANSFORMERS:
        raise ArgumentError(
            f"there is no transformer '{name}'.{nearest(name, TRANSFORMERS)} Known: "
            f"{', '.join(TRANSFORMERS)}. timm has many more, without the prefix hf:."
        )
    kind, settings = TRANSFORMERS[name]
    config = transformers.AutoConfig.for_model(kind, **settings, num_channels=channels)
    network = transformers.AutoModel.from_config(config)
    indices, normalised = _blocks(name, taps, config.num_hidden_layers)
    if not normalised:
        del network.encoder.layer[max(indices) + 1 :]
        network.layernorm = nn.Identity()
    prefix = 1 + int(getattr(config, "num_register_tokens", 0))
    return network, Reader("transformers", indices, normalised, prefix, config.patch_size)


def import_transformers() -> Any:
    """Import transformers.

    Raises:
        ArgumentError: it is not installed.
    """
    declare_operators()  # transformers imports torchvision too
    try:
        import transformers
    except ImportError as error:
        raise ArgumentError(
            "networks with the prefix hf: need transformers: pip install transformers. timm's "
            "vit_small_patch14_dinov2.lvd142m and its kin don't."
        ) from error
    return transformers


# Files keep the names of older releases of transformers.
_STORED = {
    "attention.attention.query.": "attention.q_proj.",
    "attention.attention.key.": "attention.k_proj.",
    "attention.attention.value.": "attention.v_proj.",
    "attention.output.dense.": "attention.o_proj.",
}


def under_names_of(state: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Return weights under the names that the installed transformers gives its layers.

    Args:
        state: of a file, by the names of this or of another release.
        wanted: the network's own names.
    """
    known = set(wanted)
    result = dict(state)
    for key, tensor in state.items():
        for old, new in (*_STORED.items(), *((v, k) for k, v in _STORED.items())):
            if old in key and key.replace(old, new) in known:
                result[key.replace(old, new)] = tensor
    return result
