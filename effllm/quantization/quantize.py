"""Stage `quantize`: a model in one precision.

in:  model; for GPTQ also corpus, the calibration text, or tokens, random ones for random weights
out: model/ (loads with plain AutoModelForCausalLM.from_pretrained), quantization.json (settings, bytes of weights,
     and `unscored` for random weights)
"""

from pydantic import TypeAdapter

from effllm.models.loading import keep_refused_generation, load_tokenizer
from effllm.models.random_weights import why_unscored
from effllm.quantization.cast import cast
from effllm.quantization.gptq import quantize_gptq
from effllm.quantization.weights import weight_bytes
from effllm.results.quantization import Quantization
from effllm.runtime.stage import Job, main
from effllm.study.models import CastPrecision, Precision


def build(job: Job) -> None:
    """Write the model in the asked precision, its tokenizer, and what was done to it."""
    settings = TypeAdapter(Precision).validate_python(job.spec["config"]["precision"])
    source = job.inputs["model"].directory / "model"
    target = job.output / "model"
    if isinstance(settings, CastPrecision):
        cast(source, target, settings)
    else:
        data = job.inputs["corpus" if settings.calibration.corpus else "tokens"]
        quantize_gptq(source, target, settings, data.directory, job.records)
    if (source / "tokenizer_config.json").exists():
        load_tokenizer(source).save_pretrained(target)
    keep_refused_generation(source, target)
    unscored = why_unscored(job.inputs["model"])
    job.write(
        Quantization(
            nominal_bits=settings.nominal_bits,
            precision=settings.plain(),
            weights=weight_bytes(target),
            **({"unscored": unscored} if unscored else {}),
        )
    )


if __name__ == "__main__":
    main("quantize", build)
