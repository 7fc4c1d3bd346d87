"""Methods that learn from labels: a few anomalies, images of other things, layers of anatomy."""
