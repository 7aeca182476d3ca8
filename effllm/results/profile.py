"""profile.json: memory, latency, throughput, power and energy of a model under the fixed workloads."""

from typing import Any, ClassVar, Literal

from pydantic import Field, RootModel

from effllm.errors import Status
from effllm.results.base import Figures, Number, Part, ResultFile
from effllm.results.telemetry import DeviceInfo, Finding, TelemetrySummary


class MeasuredWorkload(Part):
    """What a workload asks for, as the study states it."""

    prompt_tokens: int = Field(description="Tokens in the prompt.")
    new_tokens: int = Field(description="Tokens that are generated.")
    batch_size: int = Field(description="Sequences that are decoded together.")
    cuda_graph: bool = Field(default=False, description="Whether prefill and decoding are replayed as CUDA graphs.")
    compile: bool = Field(default=False, description="Whether the decoding step was compiled before.")
    images: int = Field(default=0, description="Images before each prompt.")
    image_size: int | None = Field(default=None, description="Their height and width in pixels.")


class MeasuredProtocol(Part):
    """How workloads were measured, as the study states it."""

    workloads: dict[str, MeasuredWorkload] = Field(description="Workloads by id.")
    idle_s: float = Field(description="Rest with the model loaded, in s.")
    warmup_minimum: int = Field(description="Generations before a measurement, at least.")
    warmup_maximum: int = Field(description="Generations before a measurement, at most.")
    warmup_tolerance: float = Field(
        description="Span of the last three times over their median that counts as settled."
    )
    repeats: int = Field(description="Windows per workload and phase.")
    minimum_window_s: float = Field(description="Shortest window in s.")
    cooldown_s: float = Field(description="Rest between windows in s.")
    maximum_relative_interval: float = Field(description="Half the interval of latency over its mean, at most.")
    sample_period_s: float = Field(description="Time between samples of telemetry in s.")
    seed: int = Field(description="Of prompts and the order of windows.")


class Latency(Part):
    """Times and rates of the windows of whole generations."""

    generations: int = Field(description="How many there were.")
    generated_tokens: int = Field(description="Tokens of all of them.")
    latency_ms: float = Field(description="AL: mean time of a generation in ms.")
    latency_ms_ci95: list[float | None] = Field(description="Its 95 % interval over windows, in ms.")
    latency_ms_by_window: list[float] = Field(description="The mean of each window in ms.")
    throughput_tokens_per_s: float = Field(description="IT: generated tokens over time, prefill included.")
    throughput_tokens_per_s_ci95: list[float | None] = Field(description="Its 95 % interval over windows.")
    prefill_tokens_per_s: float = Field(
        description="Tokens of prompts, with those of images, over the time to the first token."
    )
    decode_tokens_per_s: float = Field(description="Tokens after the first over the time after it.")
    first_token_ms_p50: float = Field(description="Time to the first token in ms, median.")
    first_token_ms_p95: float = Field(description="95th percentile.")
    first_token_ms_p99: float = Field(description="99th percentile.")
    token_ms_p50: float = Field(description="Time between tokens in ms, median.")
    token_ms_p95: float = Field(description="95th percentile.")
    token_ms_p99: float = Field(description="99th percentile.")


class Energy(Figures):
    """Energy per generated token in J."""

    energy_j_per_token: float | None = Field(description="All energy of the windows.")
    energy_above_idle_j_per_token: float | None = Field(description="What exceeds the idle device's power.")
    decode_energy_j_per_token: float | None = Field(description="What a generation takes beyond a prefill.")


class Utilization(Figures):
    """What the model needs over what the device could do."""

    prefill_flops: Number | None = Field(description="Model FLOPs of a prefill.")
    prefill_mfu: float | None = Field(description="MFU: fraction of the dense peak in the model's type.")
    decode_flops_per_step: Number | None = Field(description="Model FLOPs of a decoding step.")
    decode_bytes_per_step: Number | None = Field(description="Bytes that a step must read: weights and cache.")
    decode_mbu: float | None = Field(description="MBU: fraction of the peak bandwidth of memory.")


class VisionFigures(Figures):
    """What the images of a prompt cost: the time to the first token in two parts, encoding and the rest."""

    images: int = Field(description="Images of a sequence.")
    image_tokens: int = Field(description="Tokens that they take.")
    encode_ms_p50: float = Field(description="Time to encode those of a batch in ms, median.")
    encode_ms_p95: float = Field(description="95th percentile.")
    language_first_token_ms_p50: float = Field(
        description="Median time to the first token in ms less that of the encoding: prefill of text and image tokens."
    )
    encode_flops: Number = Field(description="Model FLOPs of tower and projector for a batch.")
    energy_j_per_image: float | None = Field(description="Energy of the encoding, per image.")


class PhaseTelemetry(Part):
    """Telemetry of a workload's windows, by phase."""

    generate: TelemetrySummary = Field(description="Whole generations.")
    prefill: TelemetrySummary = Field(description="Generations of one token.")
    vision: TelemetrySummary | None = Field(default=None, description="Encoding of images alone; absent without them.")


class WorkloadProfile(Part):
    """One workload: null figures, with status and reason, where it could not run."""

    status: Status = Field(description="ok, or why it must not be ranked.")
    reason: str | None = Field(description="The errors among the findings, or why it could not run.")
    findings: list[Finding] = Field(description="What the plausibility rules say.")
    figures: Latency | None = Field(description="Times and rates.")
    energy: Energy | None = Field(description="Energy per token.")
    utilization: Utilization | None = Field(description="MFU and MBU.")
    telemetry: PhaseTelemetry | None = Field(description="What the instruments say.")
    vision: VisionFigures | None = Field(default=None, description="Of a workload with images; absent without.")


class Profile(Part, ResultFile):
    """One model in one precision under the fixed workloads."""

    FILE: ClassVar[str] = "profile.json"

    cpus_usable: int = Field(description="Cores that the process could use.")
    device: DeviceInfo = Field(description="What it ran on.")
    idle: TelemetrySummary = Field(description="The device with the model loaded and nothing to do.")
    ignored_generation_settings: dict[str, Any] = Field(
        default_factory=dict, description="What the model's files ask of generation, which was not followed."
    )
    kernel: str | None = Field(default=None, description="What quantized layers ran by; null without any.")
    placement: Literal["one device", "layers", "tensor"] = Field(
        default="one device",
        description="layers: whole layers on each of several devices, which work in turn. tensor: a part of every "
        "layer on each, which work at once; the allocator's figures are then those of the first process.",
    )
    protocol: MeasuredProtocol = Field(description="How it was measured.")
    threads: int = Field(description="Threads of torch.")
    workloads: dict[str, WorkloadProfile] = Field(description="Workloads by id.")


class GenerationTimes(Part):
    """One generation of a workload's window."""

    first_token_s: float = Field(description="Time to the first token in s.")
    token_s: list[float] = Field(description="Times between the others in s.")
    generated_tokens: int = Field(description="Tokens over the batch.")


class Generations(ResultFile, RootModel[dict[str, list[list[GenerationTimes]]]]):
    """Every generation that was timed, by workload and phase, one list per window."""

    FILE: ClassVar[str] = "records/generations.json"
