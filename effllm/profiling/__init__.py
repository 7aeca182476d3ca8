"""Fixed workloads by which models are compared, measured by `effllm.telemetry`."""
