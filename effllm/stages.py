"""The stages of the workflow: which program builds which artifact, and in which version.

Raise a stage's version by hand when a change to its code alters results; everything built by an older version
then reruns. Nothing heavy is imported here, because every parse of the workflow reads this table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One program of the workflow.

    `module` is run as `python -m <module>`; `version` is part of every spec of the stage;
    `network` marks stages that may need the hub.
    """

    name: str
    module: str
    version: int
    network: bool = False


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("corpus", "effllm.data.corpus", 2, network=True),
        Stage("tokenizer", "effllm.data.tokenizer", 1, network=True),
        Stage("tokens", "effllm.data.packing", 1),
        Stage("instructions", "effllm.data.instructions.prepare", 2, network=True),
        Stage("pretrain", "effllm.training.pretrain", 4),
        Stage("model", "effllm.models.import_model", 2, network=True),
        Stage("finetune", "effllm.training.finetune", 2),
        Stage("merge", "effllm.training.merge", 2),
        Stage("quantize", "effllm.quantization.quantize", 3),
        Stage("benchmark", "effllm.evaluation.benchmark", 3, network=True),
        Stage("evaluate", "effllm.evaluation.evaluate", 2),
        Stage("profile", "effllm.profiling.inference", 3),
    )
}
