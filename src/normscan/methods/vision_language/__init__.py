"""Images and sentences in one space: CLIP's towers and what is asked of them."""
