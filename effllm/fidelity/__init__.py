"""Images sampled from trained models of diffusion, what sampling costs, and how close samples come to real images."""
