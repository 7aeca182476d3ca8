"""Studies that `effllm init` writes: short, commented, valid, and from then on the user's own."""
