"""A method in, a method out: ensembles, Monte-Carlo dropout, flips at test, impure training data.

A wrapper is a registered function of a builder, so that it may build several. It is named as
``name=value``, the way post-processing steps are, and put around any method:
``Detector("ae_dense", wrappers=["ensemble=3"])``, ``normscan fit ae_dense --wrappers [ensemble=3]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.wrappers.chain import check_wrappers as check_wrappers
    from normscan.wrappers.chain import wrap as wrap
    from normscan.wrappers.kinds import Build as Build
    from normscan.wrappers.kinds import wrapper as wrapper

__all__ = ["Build", "check_wrappers", "wrap", "wrapper"]

__getattr__ = lazily(
    __name__, {"Build": "kinds", "check_wrappers": "chain", "wrap": "chain", "wrapper": "kinds"}
)
