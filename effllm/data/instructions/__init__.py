"""Instruction data: conversations from hub, files and the Python installation, and their encoding for training."""
