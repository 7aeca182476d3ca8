"""What a job asks of a cluster: run time, host memory and GPUs, by stage and size of the model.

A model that the study trains is sized by its architecture, any other by the bytes of the artifact that the job reads,
which exists when the job is submitted. These are requests, not predictions: a job that gets too little is ended, so
they are generous, and each attempt asks for more.
"""

import errno
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from effllm.errors import UserError
from effllm.models.costs import parameter_count, training_flops
from effllm.models.costs.shapes import shape_of
from effllm.quantization import read_precision
from effllm.runtime.artifact import Artifact
from effllm.study import Study
from effllm.study.data import SyntheticStream, TrainedTokenizer
from effllm.study.finetuning import run_of
from effllm.study.training import Parallel, PretrainingRun

# Half of what Hopper GPUs sustain in training, in FLOP/s: bfloat16, and float32 with TF32 products.
_SUSTAINED_FLOPS = {"bfloat16": 200e12, "float32": 60e12}
# Text that one core tokenizes, bytes per second.
_TOKENIZED_PER_S = 1e6
# Vocabularies of the hub are not known before they are fetched; none of the paper's is larger.
_LARGEST_VOCABULARY = 152_064
# A process with PyTorch and the libraries beside it, in MB, with a margin.
_PROCESS_MB = 8_000
_MB, _GB = 1e6, 1e9

GPU_STAGES = ("pretrain", "finetune", "merge", "quantize", "evaluate", "profile")


# Warned this long before its time is over, a training run saves a checkpoint, from which the next attempt goes on.
_WARNING = "--signal=TERM@300"
# A neighbour's load would be in the figures.
_WHOLE_NODES = "--exclusive"


@dataclass(frozen=True)
class Request:
    """Minutes, host memory in MB per node, nodes, GPUs per node, and what else Slurm is told."""

    minutes: int
    memory_mb: int
    nodes: int = 1
    gpus_per_node: int = 0
    options: tuple[str, ...] = ()


def request(study: Study, stage: str, id: str, manifests: Mapping[str, str], cores: int) -> Request:
    """What the node `id` of `stage` asks for at its first attempt.

    `manifests` are the paths of its parents' manifests by name; FileNotFoundError, which names it, while one that
    counts is missing; `UserError` for one that is damaged.
    `cores` are the CPU cores it gets.
    """
    if stage == "pretrain":
        return _pretraining(study, study.pretraining[id])
    if stage == "tokens":
        text = _payload_bytes(manifests["corpus"], ".parquet") if "corpus" in manifests else 0
        return _rounded(30 + 3 * text / (_TOKENIZED_PER_S * cores) / 60, 2 * _PROCESS_MB)
    weights = _weights(manifests["model"])
    if stage == "finetune":
        return _finetuning(study, id, weights, manifests["instructions"])
    if stage == "merge":
        return _rounded(30 + weights.as_16_bit / _GB, _PROCESS_MB + 3 * weights.bytes / _MB, gpus=1)
    if stage == "quantize":
        return _quantization(study, id, weights)
    if stage == "evaluate":
        # Most of the time goes into benchmarks of thousands of requests, and grows with the parameters.
        return _rounded(60 + 12 * weights.as_16_bit / _GB, _PROCESS_MB + 2 * weights.bytes / _MB, gpus=1)
    protocol = study.inference
    windows = 2 * len(protocol.workloads) * protocol.repeats
    measured_s = windows * (protocol.minimum_window_s + protocol.cooldown_s) + protocol.idle_s
    minutes = 30 + 3 * measured_s / 60 + weights.as_16_bit / _GB
    return _rounded(minutes, _PROCESS_MB + 2 * weights.bytes / _MB, gpus=1, options=(_WHOLE_NODES,))


def _pretraining(study: Study, run: PretrainingRun) -> Request:
    shape = shape_of(run.architecture, _vocabulary(study, run.tokens))
    flops = run.max_steps * run.global_batch_size * training_flops(shape, run.sequence_length)
    return _training(run.parallel, run.dtype, parameter_count(shape).total, flops)


def _finetuning(study: Study, id: str, weights: "_Weights", instructions: str) -> Request:
    model, suite, method = id.rsplit(".", 2)
    run = run_of(study.finetuning[suite], study.methods[method], model, method)
    parameters = weights.as_16_bit / 2
    sequences = run.steps(_samples(instructions)) * run.samples_per_step
    # Every sequence at its full length, and a backward pass through all weights.
    flops = 6 * parameters * sequences * run.encoding.sequence_length
    return _training(run.parallel, run.dtype, parameters, flops)


def _training(parallel: Parallel, dtype: str, parameters: float, flops: float) -> Request:
    # Each rank makes the float32 weights; the first one gathers weights and both moments for a checkpoint.
    memory_mb = parallel.devices * (_PROCESS_MB + 4 * parameters / _MB) + 12 * parameters / _MB
    if parallel.offload:
        memory_mb += 16 * parameters / _MB
    minutes = 60 + flops / (_SUSTAINED_FLOPS[dtype] * parallel.world_size) / 60
    options = (_WARNING, _WHOLE_NODES) if parallel.nodes > 1 else (_WARNING,)
    return _rounded(minutes, memory_mb, nodes=parallel.nodes, gpus=parallel.devices, options=options)


def _quantization(study: Study, id: str, weights: "_Weights") -> Request:
    model, precision = id.rsplit(".", 1)
    memory_mb = _PROCESS_MB + 3 * weights.bytes / _MB
    minutes, minutes_per_gb = study.precision_of(model, precision).job_minutes
    return _rounded(minutes + minutes_per_gb * weights.as_16_bit / _GB, memory_mb, gpus=1)


@dataclass(frozen=True)
class _Weights:
    """A model's weights: bytes as they are, and as they would be with 16 bits a parameter."""

    bytes: int
    as_16_bit: float


def _weights(manifest: str) -> _Weights:
    size = _payload_bytes(manifest, ".safetensors")
    spec = _built(manifest).manifest.spec
    try:
        # What this study trains is saved in float32.
        bits: float = 32 if spec["stage"] in ("pretrain", "merge") else 16
        if "precision" in spec["config"]:
            bits = read_precision(spec["config"]["precision"]).nominal_bits
        return _Weights(size, size * 16 / bits)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{manifest} holds a spec that no stage wrote: delete it and run again.") from None


def _built(manifest: str) -> Artifact:
    """A parent that exists. Snakemake leaves a resource open for a missing file only if it is an input itself."""
    if not Path(manifest).exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), manifest)
    return Artifact.open(manifest)


def _samples(manifest: str) -> int:
    """Training samples of instructions; 0 if they are a failed cell, on which the job does not train."""
    # Only studies that fine-tune pay for the import.
    from effllm.results.data import InstructionsSummary

    instructions = _built(manifest)
    if instructions.manifest.status != "ok":
        return 0
    splits = InstructionsSummary.read(instructions.directory).splits
    if not splits or "train" not in splits:
        where = instructions.directory
        raise UserError(f"{where}/instructions.json does not count its samples: delete {where}, run again.")
    return splits["train"].samples


def _payload_bytes(manifest: str, suffix: str) -> int:
    payload = _built(manifest).manifest.payload
    return sum(digest.size for name, digest in payload.items() if name.endswith(suffix))


def _vocabulary(study: Study, tokens: str) -> int:
    stream = study.tokens[tokens]
    if isinstance(stream, SyntheticStream):
        return stream.vocab_size
    settings = study.tokenizers[stream.tokenizer]
    return settings.vocab_size if isinstance(settings, TrainedTokenizer) else _LARGEST_VOCABULARY


def _rounded(
    minutes: float, memory_mb: float, *, nodes: int = 1, gpus: int = 0, options: tuple[str, ...] = ()
) -> Request:
    return Request(10 * math.ceil(int(minutes) / 10), 1000 * math.ceil(int(memory_mb) / 1000), nodes, gpus, options)
