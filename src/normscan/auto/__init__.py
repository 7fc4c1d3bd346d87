"""The detector that configures itself from healthy scans alone: ``create("auto")``.

``fingerprint`` looks at the cohort, ``plan`` picks candidates that fit it and the time, ``kinds`` plants
what no candidate has seen, ``member`` holds a candidate with what its healthy maps are like,
``evidence`` weighs them, ``fused`` is the method that all of it ends in.
"""
