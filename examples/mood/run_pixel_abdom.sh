#!/bin/sh
# A map of the same name for each scan of a folder.
exec normscan mood pixel "$1" "$2" --run "${DETECTORS:-/workspace/detectors}/abdom"
