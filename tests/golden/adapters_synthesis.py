"""What the records of the systems that learn from artificial anomalies compare."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Method
from normscan.methods.synthesis.copy_paste import with_places
from normscan.methods.synthesis.draem import padded_ssim
from normscan.objectives.segmentation import focal
from normscan.rng import Rng
from normscan.synthesis.blends import interpolated_gradients
from normscan.synthesis.labels import flipped_gaussian
from normscan.synthesis.placement import Scene
from tests.golden.fill import images
from tests.golden.records import Check, batch_of


def pii_patch(method: Method, check: Check) -> Tensor:
    """Rows 5 to 16 and columns 8 to 18 of an image with a patch of share 0.6 there."""
    host, donor = images(*check.shape, rule="grain"), images(*check.shape)
    mask = torch.zeros(host.shape, dtype=torch.bool)
    mask[:, :, 5:17, 8:19] = True
    scene = Scene(host, donor, mask, mask, Rng([0]), Mock())
    scene.mask = mask
    solved, _ = interpolated_gradients((0.6, 0.6))(scene, donor)
    return solved[0, 0, 5:17, 8:19]


def draem_both(method: Any, check: Check) -> Tensor:
    """The restored image."""
    with torch.no_grad():
        restored: Tensor = method.both(batch_of(check).image)[0]
    return restored


def draem_terms(method: Any, check: Check) -> Tensor:
    """Squared error and structural similarity of two images; focal loss of the probabilities.

    The mask is where the first channel of the image exceeds 0.7.
    """
    x, y = images(*check.shape, rule="grain"), images(*check.shape)
    with torch.no_grad():
        probability = method.both(x)[1][:, 1:]
    mask = x[:, :1] > 0.7
    return torch.stack([F.mse_loss(x, y), 1 - padded_ssim(x, y), focal(probability, mask)])


def gaussian_label(method: Method, check: Check) -> Tensor:
    """Rows 4 to 13 and columns 3 to 16 of the label of two images in two rectangles."""
    x, y = images(*check.shape, rule="grain"), images(*check.shape)
    mask = torch.zeros(x.shape, dtype=torch.bool)
    mask[:, :, 4:14, 3:17] = True
    mask[:, :, 17:22, 8:20] = True
    label = flipped_gaussian(0.2)(x, y, mask, torch.ones(1, 1, 1, 1))
    return label[0, 0, 4:14, 3:17]


def sixth_patch(method: Any, check: Check) -> Tensor:
    """The probabilities of a patch that is told to be the sixth of a volume."""
    with torch.no_grad():
        logits, _ = method.network(with_places(batch_of(check).image, torch.tensor([5])))
    return torch.as_tensor(logits).sigmoid()
