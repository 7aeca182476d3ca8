"""Fused kernels of the decoder for GPUs, and the choice among them and the ways of plain torch.

`choice` decides and keeps the record; each other file is one family of kernels and knows tensors only. Files named
`*_triton` import Triton; they are imported when a kernel runs, never on a machine without CUDA.
"""
