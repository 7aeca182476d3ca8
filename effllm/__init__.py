"""effllm: what makes language models efficient, and what that costs, measured."""

__version__ = "0.2.0"
