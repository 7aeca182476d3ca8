"""Stage `profile`: a model in one precision under the fixed inference workloads.

in:  model (of stage quantize)
out: profile.json (latency, throughput, memory, utilisation, power, energy by workload; null figures with reasons;
     findings of the plausibility rules and the status they give; the kernel of quantized layers)
     records/telemetry/ (samples and windows), records/generations.json
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from effllm.errors import CellFailure
from effllm.models.checkpoint.files import TOKENIZER_CONFIG
from effllm.models.greedy import decode_greedily
from effllm.models.loading import load_tokenizer
from effllm.models.placement import place, placement_of
from effllm.models.text import context_length, text_config
from effllm.models.vision_language.parts import vision_parameters
from effllm.profiling.decoding import Decoding, TimedDecoding
from effllm.profiling.figures import (
    ModelCost,
    energy_figures,
    latency_figures,
    relative_half_width,
    utilization_figures,
    vision_figures,
)
from effllm.profiling.graphs import GraphedDecoding, Graphs
from effllm.profiling.images import ImagePrompts, SequenceImages, TimedEncoding
from effllm.profiling.placement import ProfileConfig, profile_need
from effllm.profiling.schedule import IDLE, Measured, Phase, rest, run_schedule, window_name
from effllm.quantization.loading import quantized_on
from effllm.quantization.precision import Precision
from effllm.results.profile import (
    Generations,
    GenerationTimes,
    Latency,
    MeasuredProtocol,
    PhaseTelemetry,
    Profile,
    WorkloadProfile,
)
from effllm.results.quantization import Quantization
from effllm.results.telemetry import DeviceInfo, Finding
from effllm.runtime.stage import Job, main
from effllm.study.evaluation import InferenceProtocol
from effllm.telemetry import Telemetry, joint_info
from effllm.telemetry.busy import warn_if_busy
from effllm.telemetry.validity import (
    DISTURBED,
    check_disturbance,
    check_generation_settings,
    check_mbu,
    check_mfu,
    check_short_windows,
    check_summary,
    status_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from effllm.models.loading import CausalLM


def build(job: Job) -> None:
    """Measure every workload, and write what was and was not measured."""
    config = job.config(ProfileConfig)
    artifact = job.inputs["model"]
    directory = artifact.directory / "model"
    weights = Quantization.read(artifact.directory).weights
    devices = place(profile_need(weights.bytes, directory, config), config.devices)
    # Before the model takes its place: processes that are on the device now are not this one.
    info = joint_info(devices)
    for device in devices:
        warn_if_busy(device, job.id)
    try:
        tokenizer = load_tokenizer(directory) if (directory / TOKENIZER_CONFIG).is_file() else None
        with quantized_on(artifact, devices, config.spread) as (model, precision):
            profile_model(job, model, tokenizer, precision, weights.bytes, devices, info)
    except torch.cuda.OutOfMemoryError as error:
        raise CellFailure("oom", str(error).splitlines()[0]) from None


def profile_model(
    job: Job,
    model: "CausalLM",
    tokenizer: "PreTrainedTokenizerBase | None",
    precision: Precision,
    weight_bytes: int,
    devices: Sequence[str],
    info: DeviceInfo,
) -> None:
    """Measure a model that is on its devices, and write the artifact's files."""
    config = job.config(ProfileConfig)
    protocol = config.protocol()
    model.eval()
    ignored = decode_greedily(model, tokenizer)
    images = ImagePrompts(model, tokenizer, protocol.seed)
    with Telemetry(job.records / "telemetry", device=devices, period_s=protocol.sample_period_s) as telemetry:
        measured, refused = measure(model, protocol, devices, telemetry, job.id, images)
    vision = sum(weight.nbytes for _, _, weight in vision_parameters(model, model.config.model_type))
    cost = ModelCost(model.config, weight_bytes, model.dtype, str(info.name), len(devices), vision)
    workloads = {
        id: _refused_profile(refused[id])
        if id in refused
        else workload_profile(id, protocol, measured, telemetry, info, cost, ignored, images.of(workload))
        for id, workload in protocol.workloads.items()
    }
    times = {
        window_name(*key): [[GenerationTimes(**vars(generation)) for generation in window] for window in windows]
        for key, windows in measured.windows.items()
    }
    job.write(Generations(times))
    job.write(
        Profile(
            cpus_usable=len(os.sched_getaffinity(0)),
            device=info,
            idle=telemetry.summary(IDLE),
            ignored_generation_settings=ignored,
            kernel=precision.running_kernel(model),
            placement=placement_of(devices, config.spread),
            protocol=MeasuredProtocol(**protocol.plain()),
            threads=torch.get_num_threads(),
            workloads=workloads,
        )
    )


def measure(
    model: "CausalLM",
    protocol: InferenceProtocol,
    devices: Sequence[str],
    telemetry: Telemetry,
    label: str,
    images: ImagePrompts,
) -> tuple[Measured, dict[str, CellFailure]]:
    """Measure the workloads, and say of each that could not run why; `CellFailure` where none could.

    First those that the library generates, all together, then those by CUDA graphs, each recorded when its turn comes:
    graphs and their cache are no part of the others' memory, and one that cannot be recorded does not touch them.
    """
    # Prompts go where the first layer is, and answers come back there.
    device = devices[0]
    generator = torch.Generator().manual_seed(protocol.seed)
    words = text_config(model.config).vocab_size
    shapes = {id: (workload.batch_size, workload.prompt_tokens) for id, workload in protocol.workloads.items()}
    prompts = {id: torch.randint(words, shape, generator=generator) for id, shape in shapes.items()}
    positions = context_length(model.config)
    refused: dict[str, CellFailure] = {}
    for id, workload in protocol.workloads.items():
        try:
            needed = workload.prompt_tokens + images.of(workload).tokens + workload.new_tokens
        except CellFailure as failure:
            refused[id] = failure
            continue
        if positions and needed > positions:
            refused[id] = CellFailure("unsupported", f"the model has {positions} positions, {needed} are needed")
        elif workload.cuda_graph and len(devices) > 1:
            refused[id] = CellFailure(
                "unsupported", f"a CUDA graph is of one device, and the model is spread over {len(devices)}"
            )
    rest(protocol, telemetry)
    generated: dict[tuple[str, Phase], Decoding] = {}
    for id, workload in protocol.workloads.items():
        if not workload.cuda_graph and id not in refused:
            prompt = images.prompt(prompts[id], workload, device)
            generated[id, "generate"] = TimedDecoding(model, prompt.ids, workload.new_tokens, device, prompt.given)
            generated[id, "prefill"] = TimedDecoding(model, prompt.ids, 1, device, prompt.given)
            if prompt.given:
                generated[id, "vision"] = TimedEncoding(model, prompt.given, device)
    measured = run_schedule(generated, protocol, telemetry, label)
    recorded = [id for id, workload in protocol.workloads.items() if workload.cuda_graph and id not in refused]
    for id in recorded:
        try:
            measured |= _replay(id, model, prompts[id].to(device), protocol, telemetry, label)
        except CellFailure as failure:
            refused[id] = failure
            if failure.status == "unsupported":
                # What a graph cannot hold of a model, it cannot hold in another workload either.
                refused |= dict.fromkeys(recorded[recorded.index(id) :], failure)
                break
        except torch.cuda.OutOfMemoryError as error:
            refused[id] = CellFailure("oom", str(error).splitlines()[0])
    if len(refused) == len(protocol.workloads):
        status = next(iter(refused.values())).status
        raise CellFailure(status, "; ".join(f"workload {id}: {failure.reason}" for id, failure in refused.items()))
    return measured, refused


def _replay(
    id: str, model: "CausalLM", prompt: torch.Tensor, protocol: InferenceProtocol, telemetry: Telemetry, label: str
) -> Measured:
    """Record a workload's graphs, measure them, and forget them."""
    workload = protocol.workloads[id]
    new_tokens = workload.new_tokens
    graphs = Graphs(model, prompt, new_tokens, str(prompt.device), workload.compile)
    phases: dict[tuple[str, Phase], Decoding] = {
        (id, "generate"): GraphedDecoding(graphs, new_tokens),
        (id, "prefill"): GraphedDecoding(graphs, 1),
    }
    try:
        return run_schedule(phases, protocol, telemetry, label)
    finally:
        if workload.compile:
            # Compiled code keeps the model and its cache.
            torch.compiler.reset()


def _refused_profile(failure: CellFailure) -> WorkloadProfile:
    """As `workload_profile`, for a workload that could not run."""
    parts = dict.fromkeys(("energy", "figures", "telemetry", "utilization"))
    return WorkloadProfile(**parts, findings=[], reason=failure.reason, status=failure.status)


def workload_profile(
    id: str,
    protocol: InferenceProtocol,
    measured: Measured,
    telemetry: Telemetry,
    info: DeviceInfo,
    cost: ModelCost,
    ignored: dict[str, Any],
    images: SequenceImages,
) -> WorkloadProfile:
    """Figures, telemetry, findings and status of one workload; `ignored` as of `decode_greedily`."""
    workload = protocol.workloads[id]
    generate, prefill = (telemetry.summary(window_name(id, phase)) for phase in ("generate", "prefill"))
    figures = latency_figures(measured.windows[id, "generate"], workload, images)
    prefills = sum(len(window) for window in measured.windows[id, "prefill"])
    energy = energy_figures(generate, prefill, telemetry.summary(IDLE), figures, prefills, workload)
    utilization = utilization_figures(figures, workload, cost, images)
    of_vision: dict[str, Any] = {}
    phases = {"generate": generate, "prefill": prefill}
    if images.count:
        phases["vision"] = vision = telemetry.summary(window_name(id, "vision"))
        of_vision["vision"] = vision_figures(measured.windows[id, "vision"], figures, vision, workload, images)
    findings = check_summary(generate, info, protocol.minimum_window_s)
    if not any(finding.rule == DISTURBED for finding in findings):
        # Decoding's own energy is a difference between the two phases.
        findings += check_disturbance(prefill)
    findings += check_mfu(utilization.prefill_mfu) + check_mbu(utilization.decode_mbu)
    findings += check_protocol(id, figures, protocol, measured)
    findings += check_generation_settings(ignored)
    status, reason = status_of(findings)
    return WorkloadProfile(
        energy=energy,
        figures=figures,
        findings=findings,
        reason=reason,
        status=status,
        telemetry=PhaseTelemetry(**phases),
        utilization=utilization,
        **of_vision,
    )


def check_protocol(id: str, figures: Latency, protocol: InferenceProtocol, measured: Measured) -> list[Finding]:
    """Whether the measurement kept to its protocol: settled warm-ups, windows for a power sensor, a narrow interval."""
    findings = []
    width = relative_half_width(figures.latency_ms, figures.latency_ms_ci95)
    if width > protocol.maximum_relative_interval:
        message = (
            f"the 95 % interval of latency_ms reaches {width:.1%} to either side, "
            f"more than maximum_relative_interval {protocol.maximum_relative_interval:.0%}"
        )
        findings.append(Finding("interval", "error", message))
    for (workload, phase), warmup in measured.warmups.items():
        if workload == id and not warmup.settled:
            message = f"the warm-up of {window_name(workload, phase)} had not settled after {len(warmup.seconds)} runs"
            findings.append(Finding("warmup", "warning", message))
    return findings + check_short_windows(protocol.minimum_window_s)


if __name__ == "__main__":
    from effllm.stages.profile import ProfileStage

    main(ProfileStage(), build)
