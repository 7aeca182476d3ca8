"""vLLM's own benchmark client, `vllm bench serve`, for traces of this project. It runs in vLLM's environment.

    VENV/bin/python benchmarks/vllm_client.py < jobs

A job is a line of JSON: url, model, and trace, a file of traces/ of a result. Each is answered by a line of JSON: its
medians in ms, how many requests were answered, and how many tokens. vLLM's function `benchmark` does the measuring; it
takes the times of requests from them (`self_timed`), as for the public traces that it reads.
"""

import asyncio
import contextlib
import json
import statistics
import sys
from pathlib import Path

from vllm.benchmarks.datasets import SampleRequest
from vllm.benchmarks.serve import TaskType, benchmark

# What this project's client asks of every answer, which is work for the server too. The length is ignore_eos's.
ASKED = {
    "temperature": 0,
    "return_token_ids": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


def requests_of(trace: Path) -> list[SampleRequest]:
    """The trace's requests: prompts of token ids."""
    _, *lines = [json.loads(line) for line in trace.read_text().splitlines()]
    return [
        SampleRequest(
            prompt=line["prompt"],
            prompt_len=len(line["prompt"]),
            expected_output_len=line["output_tokens"],
            timestamp=line["scheduled_s"],
        )
        for line in lines
    ]


def measure(job: dict[str, str]) -> dict[str, float]:
    """Medians of a trace that is sent to a server."""
    found = asyncio.run(
        benchmark(
            task_type=TaskType.GENERATION,
            endpoint_type="openai",
            api_url=job["url"] + "/v1/completions",
            base_url=job["url"],
            model_id=job["model"],
            model_name=job["model"],
            tokenizer=None,
            input_requests=requests_of(Path(job["trace"])),
            logprobs=None,
            request_rate=float("inf"),
            burstiness=1.0,
            disable_tqdm=True,
            num_warmups=0,
            profile=False,
            selected_percentile_metrics=["ttft", "tpot", "e2el"],
            selected_percentiles=[99.0],
            ignore_eos=True,
            goodput_config_dict={},
            max_concurrency=None,
            lora_modules=None,
            extra_headers=None,
            extra_body=ASKED,
            self_timed=True,
        )
    )
    requests = list(zip(found["ttfts"], found["latencies"], found["output_lens"], strict=True))
    return {
        "ttft_ms": 1000 * statistics.median(first for first, _, _ in requests),
        # As its own median of TPOT is made, which it gives only to those who bring a tokenizer.
        "tpot_ms": 1000 * statistics.median((whole - first) / (tokens - 1) for first, whole, tokens in requests),
        "e2e_ms": 1000 * statistics.median(whole for _, whole, _ in requests),
        "completed": found["completed"],
        "output_tokens": found["total_output_tokens"],
    }


def main() -> None:
    """Answer job by job."""
    print("ready", flush=True)
    for line in sys.stdin:
        # What it prints by itself is for people.
        with contextlib.redirect_stdout(sys.stderr):
            found = measure(json.loads(line))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
