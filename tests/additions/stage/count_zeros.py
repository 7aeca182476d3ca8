"""The program of the stage `sparsity`. Becomes effllm/quantization/count_zeros.py.

in:  model, in one precision
out: sparsity.json (share of the weights that are zero)
"""

from typing import ClassVar

from pydantic import Field
from safetensors.numpy import load_file

from effllm.results.base import Part, ResultFile
from effllm.runtime.stage import Job, main


class Sparsity(Part, ResultFile):
    """What was counted."""

    FILE: ClassVar[str] = "sparsity.json"

    zero_share: float = Field(description="Share of the weights that are zero.")


def build(job: Job) -> None:
    """Count zeros over all tensors."""
    tensors = [
        tensor
        for path in sorted((job.inputs["model"].directory / "model").glob("*.safetensors"))
        for tensor in load_file(path).values()
    ]
    zeros = sum(int((abs(tensor) <= job.spec["config"]["threshold"]).sum()) for tensor in tensors)
    job.write(Sparsity(zero_share=zeros / sum(tensor.size for tensor in tensors)))


if __name__ == "__main__":
    from effllm.stages.sparsity import SparsityStage

    main(SparsityStage(), build)
