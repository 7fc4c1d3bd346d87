"""Translation to a simulated domain that has no room for lesions, and back."""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor

from normscan.methods.adversarial.cycles import Cycle, Translation, cycled, translation
from normscan.methods.autoencoders.plain import BAUR_POSTPROCESS, BAUR_RANGE
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import positive
from normscan.registry import register
from normscan.synthesis.blur import smooth


class Filtered(Cycle):
    """What comes from the simulated domain, 1, is blurred before it goes back; see ``steganomaly``.

    Args:
        *parts: of ``Cycle``.
        sigma: deviation of the filter in pixels; 0 for none.
    """

    def __init__(self, *parts: Any, sigma: float) -> None:
        super().__init__(*parts)
        self.sigma = sigma

    def other(self, batch: Batch) -> Tensor:
        assert batch.part is not None
        return batch.part == 1

    def between(self, moved: Tensor, domain: int) -> Tensor:
        if not self.sigma or not domain or not len(moved):
            return moved
        return smooth(moved.flatten(0, 1)[:, None], self.sigma).reshape(moved.shape)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = 2 * batch.image - 1
        restored = self.translators[0](self.between(self.translators[1](x), 1))
        return Maps(map=positive(x, restored) / 2, reconstruction=(restored + 1) / 2)


@register(
    "steganomaly",
    paper="Baur 2020",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "width": 12, "blocks": 4, "pool": 20, "batch_size": 4, "steps": 600,
            "lr": 5e-4, "postprocess": ("median=3",),
        },
    },
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess=BAUR_RANGE,
    tiny={
        "size": 32, "width": 6, "blocks": 1, "pool": 4, "batch_size": 4, "steps": 100, "lr": 3e-3,
        "postprocess": (),
    },
    options=translation(constant=0.5, batch_size=4, epochs=100),
)  # fmt: skip
def steganomaly(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    sigma: float = 1.0,
    dropout: float = 0.0,
    **training: Unpack[Translation],
) -> Method:
    """CycleGAN through simulated images, filtered so that nothing can hide in them (SteGANomaly).

    Baur et al., MICCAI 2020: healthy slices are translated to simulated ones of low entropy, made
    from maps of tissues, and back, without pairs. A CycleGAN restores lesions almost perfectly,
    since the first network hides faint high frequencies from which the second one paints them; a
    low-pass filter of the simulated image between both, in training and at test, takes these away.
    Terms: a judge of each domain (least squares) and the way back (10 mean |x - back|). The map is
    what is brighter than the restoration. The simulated slices are a second cohort (``--auxiliary``),
    for instance one of ``normscan phantom`` without texture and noise.

    No code was released and the article wasn't at hand. Our choices: the filter (Gauss, 1 pixel);
    Adam 2e-4, betas 0.5 and 0.999, for 100 passes, the rate falling to 0 from half of them on;
    batches of 4 of each domain, 128 pixels; networks and judges of ``cyclegan_ad``; range and
    post-processing of the same authors' comparative study, see ``ae_dense``.

    Departures:
        turns: each player draws a batch of its own; all see the same one in CycleGAN.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of 4.
        sigma: deviation of the filter in pixels; 0 for a plain CycleGAN.
        dropout: share of the features that are dropped in each residual block in training.
    """
    return cycled(
        partial(Filtered, sigma=sigma), (channels, size), "healthy+auxiliary", training,
        dropout=dropout,
    )  # fmt: skip
