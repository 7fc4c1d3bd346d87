"""From raw maps to what is decided on: the post-processing chain and the reductions."""
