"""Methods that learn from labels of pixels: of anatomy, of lesions."""
