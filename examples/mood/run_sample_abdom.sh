#!/bin/sh
# A number for each scan of a folder, in NAME.txt.
exec normscan mood sample "$1" "$2" --run "${DETECTORS:-/workspace/detectors}/abdom"
