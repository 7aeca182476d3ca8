"""Stage `profile`: a model in one precision under the fixed inference workload.

in:  model (of stage quantize)
out: profile.json (latency, throughput, memory, utilisation, power, energy; null figures with their reasons)
     records/telemetry/ (samples and windows), records/repeats.json
"""

import os
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from effllm.errors import CellFailure
from effllm.profiling.decoding import Repeat, TimedDecoding
from effllm.profiling.figures import latency_figures
from effllm.stage import Job, main
from effllm.study.measure import InferenceProtocol
from effllm.telemetry import Telemetry, device_info


def build(job: Job) -> None:
    """Warm up, measure the repeats, and write what was and was not measured."""
    protocol = job.config(InferenceProtocol)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        repeats, summaries = measure(job, protocol, device)
    except torch.cuda.OutOfMemoryError as error:
        raise CellFailure("oom", str(error).splitlines()[0]) from None
    job.write_json("records/repeats.json", {"repeats": [repeat.plain() for repeat in repeats]})
    job.write_json(
        "profile.json",
        {
            "device": device_info(device),
            "figures": latency_figures(repeats, protocol),
            "protocol": protocol.plain(),
            "telemetry": summaries,
            "threads": torch.get_num_threads(),
            "cpus_usable": len(os.sched_getaffinity(0)),
        },
    )


def measure(job: Job, protocol: InferenceProtocol, device: str) -> tuple[list[Repeat], dict[str, Any]]:
    """The measured repeats, and the telemetry of the windows `inference`, `prefill` and `decode`."""
    model = AutoModelForCausalLM.from_pretrained(
        job.inputs["model"].directory / "model", dtype="auto", trust_remote_code=False
    )
    model = model.to(device).eval()
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and protocol.prompt_tokens + protocol.new_tokens > positions:
        raise CellFailure(
            "unsupported",
            f"the model has {positions} positions, the workload needs {protocol.prompt_tokens + protocol.new_tokens}",
        )
    generator = torch.Generator().manual_seed(protocol.seed)
    shape = (protocol.batch_size, protocol.prompt_tokens)
    prompt = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
    decoding = TimedDecoding(model, prompt, protocol.new_tokens, device)
    for _ in range(protocol.warmup_repeats):
        decoding.run()
    with Telemetry(job.records / "telemetry", device=device, period_s=protocol.sample_period_s) as telemetry:
        repeats = []
        for index in range(protocol.repeats):
            repeats.append(decoding.run(telemetry))
            print(f"progress: {job.id} repeat {index + 1}/{protocol.repeats}", flush=True)
    return repeats, {name: telemetry.summary(name) for name in ("inference", "prefill", "decode")}


if __name__ == "__main__":
    main("profile", build)
