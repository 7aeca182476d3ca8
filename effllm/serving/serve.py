"""Stage `serve`: a model in one precision under load.

in:  model (of stage quantize)
out: serving.json (by load: latency, throughput, energy, memory; findings and the status that they give)
     requests.json (latencies of every request that counts), traces/ (the requests of each load, as they were sent)
     records/completions.json (when every token came), records/telemetry/ (samples and windows, by load),
     records/server.log (what a server said that was started for it)
"""

import os
import shutil
from pathlib import Path

import torch

from effllm.errors import CellFailure, EngineError, UserError
from effllm.models.checkpoint.files import CONFIG, read_object
from effllm.models.placement import place
from effllm.results.latency import ServedRequests
from effllm.results.quantization import Quantization
from effllm.results.serving import CompletedRequests, ServedLoad, Serving
from effllm.results.telemetry import DeviceInfo, Finding
from effllm.runtime.stage import Job, main
from effllm.serving.dispatch import Completion
from effllm.serving.engines.settings import Served
from effllm.serving.findings import check_greedy, check_saturated
from effllm.serving.latency import request_latencies
from effllm.serving.measure import TELEMETRY, TRACE, Kept
from effllm.serving.protocol import Measured, load_directories, run_protocol
from effllm.serving.roofline import Decoding
from effllm.serving.settings import ServeConfig, serving_need
from effllm.telemetry import joint_info
from effllm.telemetry.busy import warn_if_busy
from effllm.telemetry.validity import check_mbu, status_of


def build(job: Job) -> None:
    """Serve the model under every load, and write what was and was not measured."""
    config = job.config(ServeConfig)
    artifact = job.inputs["model"]
    directory = artifact.directory / "model"
    weights = Quantization.read(artifact.directory).weights
    devices = place(serving_need(weights.bytes, directory, config), config.devices)
    info = joint_info(devices)
    for device in devices:
        warn_if_busy(device, job.id)
    vocabulary = _vocabulary(directory)
    log = job.records / "server.log"
    served = Served(job.id, artifact, tuple(devices), config.load.longest, job.scratch, log)
    try:
        engine = config.engine.open(served)
        measured = run_protocol(engine, config, vocabulary, job.scratch, info, devices, job.id)
    except torch.cuda.OutOfMemoryError as error:
        raise CellFailure("oom", str(error).splitlines()[0]) from None
    except EngineError as error:
        raise CellFailure("invalid", str(error)) from None
    _write(job, config, measured, info)


def _vocabulary(directory: Path) -> int:
    """Words that prompts are drawn from: a model may have rows for more, and its tokenizer for fewer."""
    content = read_object(directory / CONFIG, str(directory))
    words = (content.get("text_config") or content).get("vocab_size")
    if not isinstance(words, int):
        raise UserError(f"{directory / CONFIG} has no vocab_size: delete {directory.parent} and run again.")
    return words


def _write(job: Job, config: ServeConfig, measured: Measured, info: DeviceInfo) -> None:
    before = measured.before
    model = Decoding.of(job.inputs["model"], before.engine.dtype)
    common = check_greedy(before.greedy, before.engine.dtype)
    if config.saturation is not None:
        common += check_saturated(measured.saturation, config.saturation.gain)
    job.write(
        Serving(
            device=info,
            cpus_usable=len(os.sched_getaffinity(0)),
            threads=torch.get_num_threads(),
            engine=before.engine,
            protocol=config.plain(),
            idle=before.idle,
            greedy=before.greedy,
            saturation=measured.saturation,
            saturated_requests_per_s=measured.saturated_requests_per_s,
            loads={id: _judged(id, measured, model, info, common) for id in measured.loads},
        )
    )
    job.write(ServedRequests({id: request_latencies(_counted(found)) for id, found in measured.loads.items()}))
    job.write(CompletedRequests({id: found.completions for id, found in measured.loads.items()}))
    traces = job.output / "traces"
    traces.mkdir()
    for id, directory in load_directories(job.scratch, measured).items():
        shutil.copyfile(directory / TRACE, traces / f"{id}.jsonl")
        shutil.copytree(directory / TELEMETRY, job.records / TELEMETRY / id)


def _judged(id: str, measured: Measured, model: Decoding, info: DeviceInfo, common: list[Finding]) -> ServedLoad:
    """A load with its distance from the roofline, and the findings that concern all of them."""
    load = measured.loads[id].load
    roofline = model.roofline(measured.loads[id], measured.tokens_per_s(id), str(info.name))
    findings = [*load.findings, *common, *check_mbu(roofline.decode_mbu)]
    status, reason = status_of(findings)
    changed = {"findings": findings, "status": status, "reason": reason, "roofline": roofline}
    return load.model_copy(update=changed)


def _counted(found: Kept) -> list[Completion]:
    """The requests after the warm-up, as figures take them."""
    counted = list(enumerate(found.completions))[found.load.warmup_requests :]
    return [
        Completion(
            index=index,
            scheduled_s=request.scheduled_s,
            dispatched_s=request.dispatched_s,
            prompt_tokens=request.prompt_tokens,
            output_tokens=sum(request.counts),
            token_times_s=tuple(request.token_times_s),
            token_counts=tuple(request.counts),
            error=request.error,
        )
        for index, request in counted
    ]


if __name__ == "__main__":
    from effllm.stages.serve import ServeStage

    main(ServeStage(), build)
