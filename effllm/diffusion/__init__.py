"""Diffusion: what a model of images is trained towards, what is drawn for it, and how images are sampled from it."""
