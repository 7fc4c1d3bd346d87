"""Methods that learn from a few labelled anomalies, or from images of other things."""
