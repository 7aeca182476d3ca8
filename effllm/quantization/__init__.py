"""Models in the precisions under test: 16-bit casts and integer weights by GPTQ."""
