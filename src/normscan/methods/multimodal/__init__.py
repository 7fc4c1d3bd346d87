"""Several images of one subject: fused at tokens or at features."""
