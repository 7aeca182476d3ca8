"""What the libraries of the study can do, known without importing them (a test compares each with its library)."""

# `model_type`s of the study's own architectures that gptqmodel quantizes.
GPTQ_MODEL_TYPES = frozenset({"llama", "phi3", "qwen2"})
