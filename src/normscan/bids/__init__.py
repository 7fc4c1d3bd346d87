"""Brain Imaging Data Structure (BIDS): data sets in, as tables; derivatives out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.bids.group import write_group as write_group
    from normscan.bids.names import BidsFile as BidsFile
    from normscan.bids.names import build_name as build_name
    from normscan.bids.names import parse_name as parse_name
    from normscan.bids.read import bids_table as bids_table
    from normscan.bids.write import write_derivatives as write_derivatives

__all__ = [
    "BidsFile",
    "bids_table",
    "build_name",
    "parse_name",
    "write_derivatives",
    "write_group",
]

__getattr__ = lazily(
    __name__,
    {
        "BidsFile": "names",
        "bids_table": "read",
        "build_name": "names",
        "parse_name": "names",
        "write_derivatives": "write",
        "write_group": "group",
    },
)
