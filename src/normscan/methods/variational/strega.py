"""A context-encoding variational autoencoder on tissue classes, and Otsu's threshold (StRegA)."""

from __future__ import annotations

from typing import Any, Literal, Unpack

from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import Reconstruction, positive
from normscan.methods.variational.gradients import (
    LAPTOP,
    POINTED,
    TINY,
    Bound,
    ContextEncoding,
    Look,
    Pointed,
    absolute_error,
)
from normscan.methods.variational.vae import Inference
from normscan.networks.convolutional import PointCode
from normscan.registry import register

FULL = 0.2  # a difference from which on a pixel is wholly anomalous

_CLASSES: dict[str, Any] = {"steps": [{"tissues": {"classes": 3}}], "scaling": "minmax"}


def darker(x: Tensor, restored: Tensor) -> Tensor:
    """max(x^ - x, 0) averaged over the channels, and 1 above 0.2: (B, 1, *spatial)."""
    difference = positive(restored, x)
    return difference.where(difference <= FULL, 1.0)


def brighter(x: Tensor, restored: Tensor) -> Tensor:
    """As ``darker`` of x - x^."""
    return darker(restored, x)


class Simplified(ContextEncoding):
    """The map is the residual, without any gradient; see ``strega``.

    Args:
        *parts: of ``ContextEncoding``.
        inference: of ``VariationalReconstruction``.
        **options: of ``ContextEncoding``.
    """

    needs_grad = False

    def __init__(self, *parts: Any, inference: Inference, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.samples = int(inference == "sample")

    def maps(self, batch: Batch) -> Maps:
        return Reconstruction.maps(self, batch)


@register(
    "strega",
    paper="Chatterjee 2022",
    dims=(2, 3),
    presets={
        "laptop": {
            **LAPTOP,
            "kl_weight": 0.001,
            "preprocess": {**_CLASSES, "crop": "foreground", "fit": "pad"},
            "postprocess": ("otsu", "opening=16", "nonzero"),
        }
    },
    preprocess={**_CLASSES, "crop": "none", "fit": "pad"},
    postprocess=("otsu", "opening=256", "nonzero"),
    tiny={
        **TINY,
        "steps": 150,
        "batch_size": 8,
        "kl_weight": 0.001,
        "lesions": "brighter",
        "postprocess": (),
        "preprocess": {"steps": []},
    },
    options=POINTED(
        size=256, latent=1024, widths=(16, 64, 256, 1024), batch_size=16, epochs=20, lr=1e-4
    ),
)
def strega(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 0.01,
    context_share: float = 0.5,
    lesions: Literal["darker", "brighter"] = "darker",
    inference: Inference = "sample",
    **options: Unpack[Pointed],
) -> Method:
    """Context-encoding variational autoencoder on tissue classes, with Otsu's threshold.

    Chatterjee et al., Computers in Biology and Medicine 2022 (StRegA): scans are simplified to a
    segmentation into fluid, grey and white matter, and a context-encoding variational autoencoder
    as ``ce_vae``, with PReLUs, 3 x 3 convolutions on the way down and a drawn code for hidden
    squares, too, restores slices of 256 pixels. What the restoration exceeds the image by is cut at
    0 and set to 1 above 0.2; Otsu's threshold of the volume, areas of 256 pixels and more of a
    slice, and pixels above 0 in the image remain. Its mask is what is above 0 in the map.

    Departures:
        segmentation: three classes between thresholds of Otsu's criterion; the article uses FAST of
            FSL, which also corrects the field and smooths the classes by their neighbours.
        training: weights of the terms, batches and epochs of the release of ``ce_vae``, whose code
            this one's is taken from; they are undefined there.
        range: each volume's classes become 0 to 1, as in the release's test; in its training each
            slice is brought there by itself.
        squares: at most one in an image, as the release makes them; see ``ce_vae``.
        GECO: left out; its switch is undefined.
        map: what remains keeps its difference, so that scans can be told apart by a score; it is a
            mask in the release.
        third axis: ours.

    Args:
        kl_weight: of the mean divergence beside the mean error.
        context_share: share of the loss with hidden squares.
        lesions: whether they are ``darker`` than their restoration, as in the release, or
            ``brighter``: it hangs on the order of the classes in a contrast.
        inference: ``sample`` draws the code at test as the release does; ``mean`` takes its mean.
    """
    network = PointCode(
        dims, channels, options["size"], options["latent"], options["widths"], 3,
        activation=nn.PReLU,
    )  # fmt: skip
    look = Look("residual", darker if lesions == "darker" else brighter)
    return Simplified(
        network, Bound(absolute_error, kl_weight, summed=False), look, options,
        share=context_share, drawn=True, inference=inference,
    )  # fmt: skip
