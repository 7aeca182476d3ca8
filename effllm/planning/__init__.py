"""What a study needs, what exists of it and whether it is whole: `effllm plan`, `status` and `verify`."""
