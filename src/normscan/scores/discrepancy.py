"""Maps from two ensembles: what one learnt and the other did not, and where one disagrees."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Discrepancy = Literal["inter", "intra", "rec"]


def discrepancies(
    x: Tensor, a: Tensor, b: Tensor, variance: Tensor | None = None
) -> dict[Discrepancy, Tensor]:
    """Maps of Cai et al. 2022 from the restorations of ensembles A and B.

    ``inter`` is |mean A - mean B|, ``intra`` the standard deviation over B (divided by K - 1),
    ``rec`` the squared residual (x - mean B)^2. With a variance of the error they are in its units:
    inter and intra over its root, rec over itself.

    Args:
        x: (N, C, *spatial).
        a: (K, N, C, *spatial) restorations of the members of A, which also saw unlabelled images.
        b: (K, N, C, *spatial) those of B, which saw healthy images only; K is 2 or more.
        variance: (N, C, *spatial) expected squared error of B, or None.

    Returns:
        Each averaged over the channels, (N, 1, *spatial).
    """
    healthy = b.mean(0)
    maps: dict[Discrepancy, Tensor] = {
        "inter": (a.mean(0) - healthy).abs(),
        "intra": b.std(0),
        "rec": (x - healthy).abs(),
    }
    if variance is not None:
        maps = {name: values / variance.sqrt() for name, values in maps.items()}
    maps["rec"] = maps["rec"].square()
    return {name: values.mean(dim=1, keepdim=True) for name, values in maps.items()}
