"""The medians that the client of servers measures, beside those of vLLM's own benchmark client for the same trace.

    python benchmarks/serving_client.py --vllm VENV/bin/python --model DIR --version 0.33.0 [--servers paced vllm]
        [--requests 40] [--rate 2] [--order ABBA] [--output figures.json]

Both clients send one trace of Poisson arrivals, one after the other in the order ABBA (A is ours), so that a drift of
the machine meets both alike: to a server that gives tokens at set times (paced_server.py), where what differs is the
clients' alone, and to vLLM, without prefix caching, since all prompts come again. A second of rest lies between two
runs. Latencies count from sending, as vLLM counts them. vLLM is installed in an environment of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
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
FIRST_MS, TOKEN_MS = 40, 10
FIGURES = ("ttft_ms", "tpot_ms", "e2e_ms")
# The paced server bears more requests at once than a model on two cores.
PACED_FASTER = 3
REST_S = 1.0


def ours(engine: OpenAIEngine, trace: Trace) -> dict[str, float]:
    """Medians by the project's client, and the share of a core that it took."""
    played = play(engine, trace)
    if errors := [completion.error for completion in played.completions if completion.error]:
        raise SystemExit(f"error: {len(errors)} requests failed: {errors[0]}.")
    times = [(c.dispatched_s, c.token_times_s[0], c.token_times_s[-1], c.output_tokens) for c in played.completions]
    return {
        "ttft_ms": 1000 * statistics.median(first - sent for sent, first, _, _ in times),
        "tpot_ms": 1000 * statistics.median((last - first) / (tokens - 1) for _, first, last, tokens in times),
        "e2e_ms": 1000 * statistics.median(last - sent for sent, _, last, _ in times),
        "client_cpu": played.client_cpu_s / played.duration_s,
    }


class Theirs:
    """vLLM's client, in a process of its environment that has its libraries loaded."""

    def __init__(self, python: Path, log: Path):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"DO_NOT_TRACK": "1"}
        script = Path(__file__).with_name("vllm_client.py")
        with open(log, "wb") as stream:
            self.process = subprocess.Popen(
                [str(python), str(script)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
            )
        self.log = log
        self._line("ready")

    def __call__(self, url: str, model: str, trace: Path) -> dict[str, float]:
        """Medians of a trace."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"url": url, "model": model, "trace": str(trace)}).encode() + b"\n")
        self.process.stdin.flush()
        found: dict[str, float] = json.loads(self._line("{"))
        return found

    def _line(self, beginning: str) -> str:
        """The next line that begins so: libraries print too while they are loaded."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline().decode():
            if line.startswith(beginning):
                return line
        raise SystemExit(f"error: vLLM's client ended: {self.log.read_text()[-1000:]}")

    def end(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def commands(vllm: Path) -> dict[str, list[str]]:
    """How each server is started."""
    paced = Path(__file__).with_name("paced_server.py")
    return {
        "paced": [sys.executable, str(paced), "{port}", "{model}", str(FIRST_MS), str(TOKEN_MS)],
        "vllm": [
            str(vllm), "-m", "vllm.entrypoints.openai.api_server", "--model", "{model}", "--dtype", "bfloat16",
            "--host", "127.0.0.1", "--port", "{port}", "--max-model-len", str(2 * (PROMPT + OUTPUT)),
            "--max-num-seqs", "32", "--enforce-eager", "--no-enable-prefix-caching",
        ],
    }  # fmt: skip


def compare(
    engine: OpenAIEngine, model: str, theirs: Theirs, trace: Trace, order: str, directory: Path
) -> dict[str, Any]:
    """Runs by both clients in their order, and the means of their medians over each other."""
    path = directory / "trace.jsonl"
    trace.write(path)
    short = Trace(trace.requests[:4])
    short.write(directory / "short.jsonl")
    # A first few by both, which do not count.
    ours(engine, short)
    theirs(engine._url, model, directory / "short.jsonl")
    runs: list[dict[str, Any]] = []
    for letter in order:
        time.sleep(REST_S)
        found = ours(engine, trace) if letter == "A" else theirs(engine._url, model, path)
        if letter == "B" and (found["completed"], found["output_tokens"]) != (
            len(trace.requests),
            len(trace.requests) * OUTPUT,
        ):
            raise SystemExit(f"error: vLLM's client had {found['completed']} requests answered: {found}.")
        runs.append({"client": "ours" if letter == "A" else "vllm", **found})
        print(json.dumps(runs[-1]), flush=True)
    means = {
        client: {name: statistics.mean(run[name] for run in runs if run["client"] == client) for name in FIGURES}
        for client in ("ours", "vllm")
    }
    ratios = {name: means["ours"][name] / means["vllm"][name] for name in FIGURES}
    return {"runs": runs, "means": means, "ratio": ratios}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, required=True, help="Python of vLLM's environment")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--version", required=True, help="of vLLM")
    parser.add_argument("--servers", nargs="+", choices=["paced", "vllm"], default=["paced", "vllm"])
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument(
        "--rate", type=float, default=2.0, help="requests a second to vLLM; the paced one gets three times"
    )
    parser.add_argument("--order", default="ABBA", help="A is this project's client, B is vLLM's")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    vocabulary = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
    prompts, outputs = (FixedLength(kind="fixed", tokens=tokens) for tokens in (PROMPT, OUTPUT))
    load = Load(arrivals=PoissonArrivals(kind="poisson"), prompt_tokens=prompts, output_tokens=outputs)
    summary: dict[str, Any] = {"requests": arguments.requests, "load_average": os.getloadavg(), "servers": {}}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        theirs = Theirs(arguments.vllm, directory / "client.log")
        for server in arguments.servers:
            rate = arguments.rate * (PACED_FASTER if server == "paced" else 1)
            trace = make_trace(load, arguments.requests, vocabulary, 0, rate_per_s=rate)
            # The directory above the checkpoint is what an artifact is.
            artifact = Artifact(arguments.model.parent, cast(Any, None), "")
            settings = ServerEngine(
                kind="server",
                command=commands(arguments.vllm)[server],
                version=arguments.version,
                environment={"VLLM_CPU_KVCACHE_SPACE": "1"},
            )
            served = Served("client", artifact, ("cpu",), PROMPT + OUTPUT, directory, directory / f"{server}.log")
            engine = OpenAIEngine(settings, served)
            try:
                engine.start()
                model = str(served.directory.resolve())
                found = compare(engine, model, theirs, trace, arguments.order, directory)
            finally:
                engine.stop()
            summary["servers"][server] = {"rate_per_s": rate, **found}
            print(server, json.dumps(found["ratio"]), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(summary, indent=1) + "\n")
        theirs.end()


if __name__ == "__main__":
    main()
