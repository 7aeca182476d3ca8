"""A decoding step by CUDA graphs: its share of the memory's bandwidth, and where its time goes.

    python benchmarks/decoding.py [--shapes 1.5b 7b] [--output decoding.json]

Random bfloat16 weights at the shapes of Qwen2.5, a prompt of 512 tokens, batch 1. Each shape is decoded by graphs of
Transformers' own kernels and by graphs of a compiled step (`compile` of a workload), each way in a process of its own:
where the profiler had run before in a process, graphs had longer gaps between their kernels. MBU is the bytes that a
token reads, weights and cache, over its time and the device's bandwidth, as in a profile's `decode_mbu`.

`int4` is the compiled step with every linear layer but the output head rounded to four bits in groups of 128 and
multiplied by torch's own kernel for that: what such weights gain, and not what they cost in quality.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.models.costs import cache_bytes
from effllm.profiling.graphs import GraphedDecoding, Graphs
from effllm.telemetry import device_info
from effllm.telemetry.metrics import model_bandwidth_utilization

SHAPES: dict[str, dict[str, Any]] = {
    "1.5b": {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "7b": {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
}  # fmt: skip
WAYS = ("plain", "compiled", "int4")
GROUP = 128
PROMPT_TOKENS, NEW_TOKENS = 512, 128
LISTED_KERNELS = 15


class Int4Linear(nn.Module):
    """A linear layer's weight as numbers of four bits, each group of a row with a scale of its own."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight = layer.weight.detach().float().unflatten(1, (-1, GROUP))
        scales = weight.abs().amax(-1, keepdim=True) / 7
        numbers = (weight / scales).round().clamp(-8, 7).add(8).flatten(1).to(torch.uint8)
        pairs = numbers[:, ::2] << 4 | numbers[:, 1::2]
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack(pairs, 8))
        pieces = (scales[..., 0].T, torch.zeros_like(scales[..., 0].T))
        self.register_buffer("scales", torch.stack(pieces, -1).bfloat16().contiguous())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """[.., in] to [.., out]."""
        rows = x.reshape(-1, x.shape[-1])
        out = torch.ops.aten._weight_int4pack_mm(rows, self.packed, GROUP, self.scales).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def round_to_int4(model: nn.Module) -> None:
    """Every linear layer of the decoder's blocks."""
    for block in model.model.layers:
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear):
                parent, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(parent), leaf, Int4Linear(layer))


def measure(shape: str, way: str, generations: int) -> dict[str, Any]:
    """Time of a token, its share of the bandwidth, and the kernels of one step."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2", max_position_embeddings=8192, dtype="bfloat16", **SHAPES[shape])
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    if way == "int4":
        round_to_int4(model)
    prompt = torch.randint(config.vocab_size, (1, PROMPT_TOKENS), device="cuda")
    started = time.perf_counter()
    graphs = Graphs(model, prompt, NEW_TOKENS, "cuda:0", way != "plain")
    recorded_s = time.perf_counter() - started
    decoding = GraphedDecoding(graphs, NEW_TOKENS)
    decoding.run()
    seconds = [second for _ in range(generations) for second in decoding.run().token_s]
    token_s = statistics.median(seconds)
    # Of an untied embedding a token reads one row.
    read_once = [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if "inv_freq" not in name)]
    weights = sum(weight.numel() * weight.element_size() for weight in read_once)
    if not config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.numel() * 2
    context = PROMPT_TOKENS + NEW_TOKENS // 2
    read = weights + cache_bytes(config, context, torch.bfloat16)
    return {
        "recorded_after_s": recorded_s,
        "ms_per_token": token_s * 1e3,
        "weights_bytes": weights,
        "mbu": model_bandwidth_utilization(read, token_s, device_info("cuda:0").name),
        "kernels": kernels(graphs),
    }


def kernels(graphs: Graphs) -> dict[str, Any]:
    """How many kernels a step has, how long they take, and the longest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profiler:
        graphs.step.replay()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.self_device_time_total]
    events.sort(key=lambda event: -event.self_device_time_total)
    return {
        "count": sum(event.count for event in events),
        "ms": sum(event.self_device_time_total for event in events) / 1e3,
        "longest": [
            {"name": event.key[:160], "ms": event.self_device_time_total / 1e3, "calls": event.count}
            for event in events[:LISTED_KERNELS]
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--generations", type=int, default=5, help="measured generations of 128 tokens")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for shape in arguments.shapes:
        for way in arguments.ways:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                result = process.submit(measure, shape, way, arguments.generations).result()
            results[shape if way == "plain" else f"{shape}, {way}"] = result
            mbu = "-" if result["mbu"] is None else f"{result['mbu']:.2f}"
            kernels_ms = result["kernels"]["ms"]
            figures = f"{result['ms_per_token']:7.2f} ms a token  MBU {mbu}  kernels {kernels_ms:.2f} ms"
            print(f"{shape}, {way:8} {figures}", flush=True)
        if arguments.output:
            content = {"device": device_info("cuda:0").model_dump(exclude_unset=True), "variants": results}
            arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
