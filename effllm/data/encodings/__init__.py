"""Latents and text embeddings of samples with captions, by a pipeline's own encoders."""
