"""What measuring costs: slow-down of training steps and of decoding, the sampler's own CPU use, and its gaps.

    python benchmarks/telemetry.py --device cuda --output telemetry.json

Rounds of blocks, each block the same work without telemetry, without it again, and with it at the default period, in
shuffled order within one run. The first two against each other give the noise of this machine: a slow-down smaller
than that is not resolved, and the table says so.
"""

import argparse
import gc
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import nn

from effllm.telemetry import Telemetry, device_info
from effllm.telemetry.metrics import mean_ci95
from effllm.telemetry.spool import TICK

PERIOD_S = 0.1
TARGETS = {"slow_down": 0.01, "sampler_cpu_share": 0.03, "longest_gap_periods": 3.0}


class Decoder(nn.Module):
    """A plain pre-norm decoder, large enough that a step is arithmetic and small enough for a laptop."""

    def __init__(self, hidden: int, layers: int, heads: int = 8, vocabulary: int = 4096):
        super().__init__()
        self.heads, self.hidden = heads, hidden
        self.embed = nn.Embedding(vocabulary, hidden)
        self.qkv = nn.ModuleList(nn.Linear(hidden, 3 * hidden) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(hidden, 4 * hidden) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(4 * hidden, hidden) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2 * layers))
        self.head = nn.Linear(hidden, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor, cache: list | None = None) -> torch.Tensor:
        """Logits of shape (batch, length, vocabulary); `cache` holds each layer's (keys, values) and is extended."""
        x = self.embed(tokens)
        batch, length, _ = x.shape
        for i, (qkv, out, up, down) in enumerate(zip(self.qkv, self.out, self.up, self.down, strict=True)):
            heads = qkv(self.norms[2 * i](x)).view(batch, length, 3, self.heads, -1)
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            if cache is not None:
                if len(cache) > i:
                    k, v = torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)
                    cache[i] = (k, v)
                else:
                    cache.append((k, v))
            attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
            x = x + out(attended.transpose(1, 2).reshape(batch, length, self.hidden))
            x = x + down(nn.functional.gelu(up(self.norms[2 * i + 1](x))))
        return self.head(x)


def training(device: str, hidden: int, layers: int) -> Callable[[int], None]:
    """A function that does n optimizer steps."""
    model = Decoder(hidden, layers).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(4096, (8, 129), device=device)

    def steps(n: int) -> None:
        for _ in range(n):
            logits = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def decoding(device: str, hidden: int, layers: int) -> Callable[[int], None]:
    """A function that decodes n times 16 tokens after a prompt of 32."""
    model = Decoder(hidden, layers).to(device).eval()
    prompt = torch.randint(4096, (1, 32), device=device)

    @torch.inference_mode()
    def steps(n: int) -> None:
        for _ in range(n):
            cache: list = []
            token = model(prompt, cache)[:, -1:].argmax(-1)
            for _ in range(15):
                token = model(token, cache)[:, -1:].argmax(-1)

    return steps


def synchronize(device: str) -> None:
    """Wait for the device, so that a timing holds its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def timed_s(work: Callable[[int], None], n: int, device: str) -> float:
    """Seconds for n steps."""
    synchronize(device)
    start_s = time.perf_counter()
    work(n)
    synchronize(device)
    return time.perf_counter() - start_s


def steps_for(work: Callable[[int], None], block_s: float, device: str) -> int:
    """How many steps fill a block of about `block_s`, after warming up."""
    work(3)
    n = 1
    while (took_s := timed_s(work, n, device)) < block_s / 4:
        n *= 2
    return max(1, round(n * block_s / took_s))


def slow_down(work: Callable[[int], None], device: str, block_s: float, rounds: int) -> dict:
    """Time with telemetry over time without, and without over without, as mean and 95 % interval over rounds."""
    n = steps_for(work, block_s, device)
    order = ["without", "again", "with"]
    ratios: dict[str, list[float]] = {"with": [], "again": []}
    costs = []
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        took_s = {}
        for kind in order:
            # The garbage one block leaves must not be collected in the next, nor its caches be refilled on the clock.
            gc.collect()
            if kind != "with":
                work(max(1, n // 5))
                took_s[kind] = timed_s(work, n, device)
                continue
            with tempfile.TemporaryDirectory() as directory:
                with Telemetry(Path(directory), device, PERIOD_S) as telemetry, telemetry.window("block"):
                    work(max(1, n // 5))
                    took_s[kind] = timed_s(work, n, device)
                costs.append(telemetry.sampler_cost)
        for kind, values in ratios.items():
            values.append(took_s[kind] / took_s["without"])
    mean, low, high = mean_ci95(ratios["with"])
    _, noise_low, noise_high = mean_ci95(ratios["again"])
    return {
        "steps_per_block": n,
        "ratio": mean,
        "ratio_median": statistics.median(ratios["with"]),
        "ratio_ci95": [low, high],
        "noise_median": statistics.median(ratios["again"]),
        "noise_ci95": [noise_low, noise_high],
        "ratios": ratios,
        "sampler_cpu_s": [cost["cpu_s"] for cost in costs if cost],
    }


def sampler_cpu(device: str, duration_s: float) -> dict:
    """CPU share of the sampler at the default period: all of its life, and without its start."""
    costs = []
    for seconds in (1.0, 1.0 + duration_s):
        with tempfile.TemporaryDirectory() as directory:
            with Telemetry(Path(directory), device, PERIOD_S) as telemetry:
                time.sleep(seconds)
            costs.append(telemetry.sampler_cost)
    short, long = costs
    return {
        "share": (long["cpu_s"] - short["cpu_s"]) / (long["run_s"] - short["run_s"]),
        "share_with_start": long["cpu_s"] / long["run_s"],
        "start_cpu_s": short["cpu_s"],
        "rss_peak_b": long["rss_peak_b"],
    }


def gaps_under_a_held_lock(device: str, duration_s: float) -> dict:
    """Longest gap between samples, in periods, while the workload holds the interpreter lock in long C calls."""
    held_s = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        with Telemetry(path, device, PERIOD_S) as telemetry, telemetry.window("locked"):
            end_s = time.monotonic() + duration_s
            while time.monotonic() < end_s:
                start_s = time.monotonic()
                # Summing a range never releases the lock: half a second and more without a switch of threads.
                sum(range(30_000_000))
                held_s.append(time.monotonic() - start_s)
        ticks = pq.read_table(path / "samples.parquet", filters=[("quantity", "=", TICK), ("origin", "=", "sampler")])
        window = telemetry.windows[0]
    longest = {}
    for source in sorted(set(ticks["source"].to_pylist())):
        times = [
            t for t, s in zip(ticks["time_ns"].to_pylist(), ticks["source"].to_pylist(), strict=True) if s == source
        ]
        times = [window.start_ns, *sorted(t for t in times if window.start_ns < t < window.end_ns), window.end_ns]
        longest[source] = max(b - a for a, b in itertools.pairwise(times)) / 1e9 / PERIOD_S
    return {"longest_hold_s": max(held_s), "longest_gap_periods": longest, "status": window.status}


def main() -> None:
    """Run everything, print a table, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of three blocks each")
    parser.add_argument("--block-s", type=float, default=0.7, help="seconds of work in a block")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's)")
    parser.add_argument("--output", type=Path, help="where to write all numbers as JSON")
    arguments = parser.parse_args()
    device = arguments.device
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    hidden, layers = (1024, 12) if device.startswith("cuda") else (256, 4)
    results = {
        "device": device_info(device).model_dump(exclude_unset=True),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "period_s": PERIOD_S,
        "targets": TARGETS,
        "training": slow_down(training(device, hidden, layers), device, arguments.block_s, arguments.rounds),
        "decoding": slow_down(decoding(device, hidden, layers), device, arguments.block_s, arguments.rounds),
        "sampler_cpu": sampler_cpu(device, 10.0),
        "gaps": gaps_under_a_held_lock(device, 8.0),
    }
    print(f"{results['device']['name']}, period {PERIOD_S} s")
    print(f"{'figure':28} {'value':>9} {'target':>9}  remark")
    for name in ("training", "decoding"):
        found = results[name]
        low, high = found["noise_ci95"]
        remark = (
            f"median of {arguments.rounds}; noise {found['noise_median'] - 1:+.2%} [{low - 1:+.2%}, {high - 1:+.2%}]"
        )
        print(f"{name + ' slow-down':28} {found['ratio_median'] - 1:>+9.2%} {'< 1 %':>9}  {remark}")
    cpu, gaps = results["sampler_cpu"], results["gaps"]
    remark = f"start {cpu['start_cpu_s'] * 1e3:.0f} ms, {cpu['rss_peak_b'] / 1e6:.0f} MB"
    print(f"{'sampler CPU, of one core':28} {cpu['share']:>9.2%} {'< 3 %':>9}  {remark}")
    for source, periods in gaps["longest_gap_periods"].items():
        remark = f"lock held for up to {gaps['longest_hold_s']:.2f} s"
        print(f"{'longest gap, ' + source:28} {periods:>7.2f} p {'<= 3 p':>9}  {remark}")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
