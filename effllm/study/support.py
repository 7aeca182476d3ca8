"""What the libraries of the study can do, known without importing them (a test compares each with its library)."""

# `model_type`s whose linear layers peft does not adapt all: some are read by fused kernels, past the adapter.
PARTLY_ADAPTED_MODEL_TYPES = frozenset({"mamba"})
