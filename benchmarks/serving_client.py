"""The latencies that the client of servers measures, beside those that guidellm measures of the same requests.

    python benchmarks/serving_client.py --url http://127.0.0.1:8000 --model DIR --guidellm VENV/bin/guidellm
        [--requests 100] [--rate 4] [--rounds 5] [--output figures.json]

A server of the model in DIR runs at the URL. Each round replays one trace of Poisson arrivals by both, one after the
other and in turns first: same times, same lengths, prompts of random tokens by the one, of random words by the other.
Latencies count from sending, as guidellm counts them. guidellm 0.8 is installed in an environment of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
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
FIGURES = {"ttft_ms": "time_to_first_token_ms", "tpot_ms": "inter_token_latency_ms", "e2e_ms": "request_latency"}


def ours(url: str, model: Path, version: str, trace: Trace) -> dict[str, float]:
    """Medians by the project's client, and the share of a core that it took."""
    directory = Path(tempfile.gettempdir())
    artifact = Artifact(model.parent, cast(Any, None), "")
    served = Served("client", artifact, ("cpu",), PROMPT + OUTPUT, directory, directory / "server.log")
    settings = ServerEngine(kind="server", url=url, version=version, served_model=str(model))
    engine = OpenAIEngine(settings, served)
    engine.start()
    try:
        played = play(engine, trace)
    finally:
        engine.stop()
    if errors := [completion.error for completion in played.completions if completion.error]:
        raise SystemExit(f"error: {len(errors)} requests failed: {errors[0]}.")
    times = [(c.dispatched_s, c.token_times_s[0], c.token_times_s[-1], c.output_tokens) for c in played.completions]
    return {
        "ttft_ms": 1000 * statistics.median(first - sent for sent, first, _, _ in times),
        "tpot_ms": 1000 * statistics.median((last - first) / (tokens - 1) for _, first, last, tokens in times),
        "e2e_ms": 1000 * statistics.median(last - sent for sent, _, last, _ in times),
        "client_cpu": played.client_cpu_s / played.duration_s,
    }


def theirs(guidellm: Path, url: str, model: Path, trace: Trace, directory: Path) -> dict[str, float]:
    """Medians by guidellm, from what it writes of every request."""
    recorded, report = directory / "trace.jsonl", directory / "report.json"
    lines = [
        {"timestamp": r.scheduled_s, "input_length": len(r.prompt), "output_length": r.output_tokens}
        for r in trace.requests
    ]
    recorded.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.unlink(missing_ok=True)
    source = {"kind": "trace_synthetic", "source": {"kind": "json_file", "path": str(recorded)}}
    command = [str(guidellm), "run", "--disable-console", "--data", json.dumps(source)]
    command += ["--backend", f"kind=openai_http,target={url},model={model},request_format=/v1/completions"]
    command += ["--profile", "kind=replay,schedule_turn=timestamp", "--output", f"kind=json,path={report}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={model}"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    environment["GUIDELLM__MAX_WORKER_PROCESSES"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if not report.is_file():
        raise SystemExit(f"error: guidellm ended with {done.returncode}: {done.stderr[-500:]}")
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    requests = benchmark["requests"]["successful"]
    if len(requests) != len(trace.requests):
        raise SystemExit(f"error: of {len(trace.requests)} requests guidellm had {len(requests)} answered.")
    if wrong := [r for r in requests if r["output_tokens"] != OUTPUT]:
        raise SystemExit(f"error: {len(wrong)} answers to guidellm have other lengths than {OUTPUT}.")
    medians = {name: statistics.median(request[key] for request in requests) for name, key in FIGURES.items()}
    return medians | {"e2e_ms": 1000 * medians["e2e_ms"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--version", required=True, help="of the server")
    parser.add_argument("--guidellm", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    vocabulary = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
    prompts, outputs = (FixedLength(kind="fixed", tokens=tokens) for tokens in (PROMPT, OUTPUT))
    load = Load(arrivals=PoissonArrivals(kind="poisson"), prompt_tokens=prompts, output_tokens=outputs)
    trace = make_trace(load, arguments.requests, vocabulary, 0, rate_per_s=arguments.rate)
    rounds = []
    with tempfile.TemporaryDirectory() as directory:
        # Both meet a server that has served before.
        ours(arguments.url, arguments.model, arguments.version, trace)
        for number in range(arguments.rounds):
            pair: dict[str, dict[str, float]] = {}
            for who in ("ours", "guidellm") if number % 2 == 0 else ("guidellm", "ours"):
                if who == "ours":
                    pair[who] = ours(arguments.url, arguments.model, arguments.version, trace)
                else:
                    pair[who] = theirs(arguments.guidellm, arguments.url, arguments.model, trace, Path(directory))
            rounds.append(pair)
            print(json.dumps(pair), flush=True)
    ratios = {name: [pair["ours"][name] / pair["guidellm"][name] for pair in rounds] for name in FIGURES}
    figures = {
        "load_average": os.getloadavg(),
        "rounds": rounds,
        "ratio": {
            name: {"median": statistics.median(r), "least": min(r), "most": max(r)} for name, r in ratios.items()
        },
    }
    print(json.dumps(figures["ratio"], indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
