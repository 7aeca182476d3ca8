"""The latencies that the client of servers measures, beside those that guidellm measures under the same load.

    python benchmarks/serving_client.py --url http://127.0.0.1:8000 --model DIR --version 0.33.0
        --guidellm VENV/bin/guidellm [--requests 150] [--rate 1.5] [--rounds 3] [--output figures.json]

vLLM serves the model in DIR at the URL. In each round both replay a trace of Poisson arrivals at the same time, so that
both meet the same machine: one rate, the same lengths, prompts of random tokens by the one, of words by the other.
Latencies count from sending, as guidellm counts them. guidellm 0.8 is installed in an environment of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, cast

from effllm.runtime.artifact import Artifact
from effllm.serving.dispatch import play
from effllm.serving.engines.openai import OpenAIEngine
from effllm.serving.engines.server import ServerEngine
from effllm.serving.engines.settings import Served
from effllm.serving.load import FixedLength, Load, PoissonArrivals
from effllm.serving.synthesis import make_trace
from effllm.serving.trace import Trace

PROMPT, OUTPUT = 64, 32
REPORT = "report.json"
FIGURES = {"ttft_ms": "time_to_first_token_ms", "tpot_ms": "inter_token_latency_ms", "e2e_ms": "request_latency"}


def ours(engine: OpenAIEngine, trace: Trace) -> dict[str, float]:
    """Medians by the project's client, and the share of a core that it took."""
    start_s = time.time()
    played = play(engine, trace)
    if errors := [completion.error for completion in played.completions if completion.error]:
        raise SystemExit(f"error: {len(errors)} requests failed: {errors[0]}.")
    times = [(c.dispatched_s, c.token_times_s[0], c.token_times_s[-1], c.output_tokens) for c in played.completions]
    return {
        "ttft_ms": 1000 * statistics.median(first - sent for sent, first, _, _ in times),
        "tpot_ms": 1000 * statistics.median((last - first) / (tokens - 1) for _, first, last, tokens in times),
        "e2e_ms": 1000 * statistics.median(last - sent for sent, _, last, _ in times),
        "client_cpu": played.client_cpu_s / played.duration_s,
        "start_s": start_s,
    }


def prompt_tokens(url: str) -> list[str]:
    """What vLLM says of the tokens of all prompts so far."""
    with urllib.request.urlopen(url + "/metrics", timeout=60) as answer:
        return [line for line in answer.read().decode().splitlines() if line.startswith("vllm:prompt_tokens_total")]


def start_theirs(guidellm: Path, url: str, model: Path, trace: Trace, directory: Path) -> subprocess.Popen[bytes]:
    """guidellm, which will replay the trace and write what it measured of every request."""
    recorded = directory / "trace.jsonl"
    lines = [
        {"timestamp": r.scheduled_s, "input_length": len(r.prompt), "output_length": r.output_tokens}
        for r in trace.requests
    ]
    recorded.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / REPORT).unlink(missing_ok=True)
    source = {"kind": "trace_synthetic", "source": {"kind": "json_file", "path": str(recorded)}}
    command = [str(guidellm), "run", "--disable-console", "--data", json.dumps(source)]
    backend = {"kind": "openai_http", "target": url, "model": str(model), "request_format": "/v1/completions"}
    command += ["--backend", json.dumps(backend | {"extras": {"body": {"temperature": 0}}})]
    command += ["--profile", "kind=replay,schedule_turn=timestamp"]
    command += ["--output", f"kind=json,path={directory / REPORT}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={model}"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    environment["GUIDELLM__MAX_WORKER_PROCESSES"] = "1"
    with open(directory / "guidellm.log", "wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def theirs(process: subprocess.Popen[bytes], requests: int, directory: Path) -> dict[str, float]:
    """Medians by guidellm, once it has ended."""
    code = process.wait()
    if not (directory / REPORT).is_file():
        raise SystemExit(f"error: guidellm ended with {code}: {(directory / 'guidellm.log').read_text()[-500:]}")
    (benchmark,) = json.loads((directory / REPORT).read_text())["benchmarks"]
    answered = benchmark["requests"]["successful"]
    if len(answered) != requests:
        raise SystemExit(f"error: of {requests} requests guidellm had {len(answered)} answered.")
    if wrong := [r for r in answered if r["output_tokens"] != OUTPUT]:
        raise SystemExit(f"error: {len(wrong)} answers to guidellm have other lengths than {OUTPUT}.")
    medians = {name: statistics.median(request[key] for request in answered) for name, key in FIGURES.items()}
    start_s = min(request["info"]["timings"]["request_start"] for request in answered)
    prompts = statistics.mean(request["prompt_tokens"] for request in answered)
    return medians | {"e2e_ms": 1000 * medians["e2e_ms"], "prompt_tokens": prompts, "start_s": start_s}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--version", required=True, help="of the server")
    parser.add_argument("--guidellm", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    vocabulary = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
    prompts, outputs = (FixedLength(kind="fixed", tokens=tokens) for tokens in (PROMPT, OUTPUT))
    load = Load(arrivals=PoissonArrivals(kind="poisson"), prompt_tokens=prompts, output_tokens=outputs)
    # Two draws of one load: in step, the prompt of the one would always delay the same tokens of the other.
    trace, other = (make_trace(load, arguments.requests, vocabulary, s, rate_per_s=arguments.rate) for s in (0, 1))
    artifact = Artifact(arguments.model.parent, cast(Any, None), "")
    settings = ServerEngine(
        kind="server", url=arguments.url, version=arguments.version, served_model=str(arguments.model)
    )
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        log = directory / "server.log"
        engine = OpenAIEngine(settings, Served("client", artifact, ("cpu",), PROMPT + OUTPUT, directory, log))
        engine.start()
        for _ in range(arguments.rounds):
            process = start_theirs(arguments.guidellm, arguments.url, arguments.model, other, directory)
            # It begins when it has loaded its libraries, which the server's metrics show.
            before = prompt_tokens(arguments.url)
            while process.poll() is None and prompt_tokens(arguments.url) == before:
                time.sleep(0.2)
            figures = {"ours": ours(engine, trace)}
            figures["guidellm"] = theirs(process, len(trace.requests), directory)
            rounds.append(figures)
            print(json.dumps(figures), flush=True)
        engine.stop()
    ratios = {name: [pair["ours"][name] / pair["guidellm"][name] for pair in rounds] for name in FIGURES}
    summary = {
        "load_average": os.getloadavg(),
        "rounds": rounds,
        "ratio": {
            name: {"median": statistics.median(r), "least": min(r), "most": max(r)} for name, r in ratios.items()
        },
    }
    print(json.dumps(summary["ratio"], indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
