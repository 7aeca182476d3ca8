"""The program of the stage `sparsity`. Becomes effllm/quantization/count_zeros.py.

in:  model, in one precision
out: sparsity.json (share of the weights that are zero)
"""

from safetensors.numpy import load_file

from effllm.runtime.stage import Job, main


def build(job: Job) -> None:
    """Count zeros over all tensors."""
    tensors = [
        tensor
        for path in sorted((job.inputs["model"].directory / "model").glob("*.safetensors"))
        for tensor in load_file(path).values()
    ]
    zeros = sum(int((abs(tensor) <= job.spec["config"]["threshold"]).sum()) for tensor in tensors)
    job.write_json("sparsity.json", {"zero_share": zeros / sum(tensor.size for tensor in tensors)})


if __name__ == "__main__":
    main("sparsity", build)
