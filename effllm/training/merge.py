"""Stage `merge`: a base model with the adapter of a fine-tuning run merged into it.

in:  model (of stage pretrain or model), adapter (of stage finetune)
out: model/ (config, safetensors in the base model's types, the adapter's tokenizer, the base model's image processor)

A stage of its own, so that a fine-tuned model can be put under test without training it again.
"""

from effllm.errors import CellFailure
from effllm.models.loading import load_causal_lm, load_tokenizer
from effllm.models.saving import copy_processor, save_causal_lm
from effllm.runtime.stage import Job, main
from effllm.training.adapters import merge_adapter


def build(job: Job) -> None:
    """Merge on the CPU; raises CellFailure (nan) where a merged weight is no number."""
    adapter = job.inputs["adapter"].directory / "adapter"
    source = job.inputs["model"].directory / "model"
    base = load_causal_lm(source)
    try:
        merged = merge_adapter(base, adapter)
    except ValueError as error:
        raise CellFailure("nan", " ".join(str(error).split())) from None
    save_causal_lm(merged, job.output / "model")
    load_tokenizer(adapter).save_pretrained(job.output / "model")
    copy_processor(source, job.output / "model")


if __name__ == "__main__":
    from effllm.stages.merge import MergeStage

    main(MergeStage(), build)
