"""Brain Imaging Data Structure (BIDS): data sets in, derivatives out, and the BIDS-App."""

from normscan.bids.names import BidsFile, build_name, parse_name
from normscan.bids.read import bids_table, read_bids
from normscan.bids.write import write_derivatives, write_group

__all__ = [
    "BidsFile",
    "bids_table",
    "build_name",
    "parse_name",
    "read_bids",
    "write_derivatives",
    "write_group",
]
