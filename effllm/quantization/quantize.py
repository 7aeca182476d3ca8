"""Stage `quantize`: a model in one precision.

in:  model; for methods that calibrate also corpus, the text, or tokens, random ones for random weights
out: model/ (loads with plain AutoModelForCausalLM.from_pretrained, or AutoModelForImageTextToText; of a vision-language
     model the language model is quantized, and its image processor is there), quantization.json (settings, bytes of
     weights, and `unscored` for random weights)
"""

from effllm.models.loading import keep_refused_generation, load_tokenizer
from effllm.models.random_weights import why_unscored
from effllm.models.saving import copy_processor
from effllm.quantization import read_precision
from effllm.quantization.device import require_device, run_device
from effllm.quantization.weights import weight_bytes
from effllm.results.quantization import Quantization
from effllm.runtime.stage import Job, main


def build(job: Job) -> None:
    """Write the model in the asked precision, its tokenizer, and what was done to it."""
    settings = read_precision(job.spec["config"]["precision"])
    source = job.inputs["model"].directory / "model"
    target = job.output / "model"
    calibration = settings.calibration_set()
    require_device(settings, run_device())
    data = None if calibration is None else job.inputs[calibration.stage].directory
    settings.quantize(source, target, data, job.records)
    if (source / "tokenizer_config.json").exists():
        load_tokenizer(source).save_pretrained(target)
    copy_processor(source, target)
    keep_refused_generation(source, target)
    unscored = why_unscored(job.inputs["model"])
    job.write(
        Quantization(
            nominal_bits=settings.nominal_bits,
            precision=settings.plain(),
            weights=weight_bytes(target, settings),
            **({"unscored": unscored} if unscored else {}),
        )
    )


if __name__ == "__main__":
    from effllm.stages.quantize import QuantizeStage

    main(QuantizeStage(), build)
