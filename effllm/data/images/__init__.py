"""Images with labels, for models of images."""
