"""Latents of images, on which models of diffusion are trained in place of pixels."""
