"""Decoding in every precision at the shapes of Qwen2.5, beside the same model without this project's code.

    python benchmarks/precisions.py --output DIR [--shapes 1.5b 7b] [--precisions bfloat16 gptq] [--until-s 300]

Random weights, packed on the device: no checkpoint is written, and the layers are those that a checkpoint is loaded
into. A prompt of 512 tokens and 128 new ones, at batch 1, 8 and 64, in two ways: by CUDA graphs, and as the library
generates. By turns with each the same without this project's code: graphs replayed without a look at the clock between
tokens, and a plain `generate`; `over_bare` is the one time over the other. Each row goes to DIR/precisions.csv at once;
a later call over the same DIR leaves out what is there. Energy is that of NVML's counter over the generations of a row,
the bare ones too. `--rehearse` takes a small shape, which also runs on a CPU.
"""

import argparse
import csv
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import torch
from pydantic import TypeAdapter
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.errors import CellFailure
from effllm.profiling.decoding import Decoding, TimedDecoding
from effllm.profiling.graphs import GraphedDecoding, Graphs
from effllm.quantization import AnyPrecision, Precision

SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    # hidden, intermediate, layers, heads, heads of keys, words, tied head
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151936, True),
    "3b": (2048, 11008, 36, 16, 2, 151936, True),
    "1.5b-mqa": (1536, 8960, 28, 12, 1, 151936, True),
    "1.5b-mha": (1536, 8960, 28, 12, 12, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "14b": (5120, 13824, 48, 40, 8, 152064, False),
    "rehearsal": (256, 512, 2, 4, 2, 512, True),
}
CALIBRATION = {"tokens": "random", "samples": 1, "sequence_length": 8}
GPTQ = {"bits": 4, "group_size": 128, "calibration": CALIBRATION}
PRECISIONS: dict[str, dict[str, Any]] = {
    "bfloat16": {"kind": "cast", "dtype": "bfloat16"},
    "gptq": {"kind": "gptq", "act_order": False, "damping": 0.05, "compute_dtype": "float16", **GPTQ},
    "awq": {"kind": "awq", **GPTQ},
    "nf4": {"kind": "bnb", "format": "nf4"},
    "int8": {"kind": "int8"},
    "fp8": {"kind": "fp8", "scales": "row"},
    "fp8-tensor": {"kind": "fp8", "scales": "tensor"},
    "llm-int8": {"kind": "bnb", "format": "int8", "compute_dtype": "float16"},
}
WAYS = ("graph", "generate")
PROMPT_TOKENS, NEW_TOKENS = 512, 128
WINDOW_S = 1.5
COLUMNS = (
    "shape", "precision", "batch", "way", "status", "ms_generation", "ms_prefill", "ms_token", "tokens_per_s",
    "J_token", "power_W", "weights_GB", "peak_GB", "over_bare", "generations", "kernel", "device", "reason",
)  # fmt: skip
Row = dict[str, Any]


def build(shape: str, name: str, device: str, kernel: str = "marlin") -> tuple[Any, Precision]:
    """A model of random weights in the precision, whose layers are packed in place; `kernel` is gptqmodel's."""
    hidden, intermediate, layers, heads, keys, words, tied = SHAPES[shape]
    config = AutoConfig.for_model(
        "qwen2", hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, vocab_size=words,
        num_attention_heads=heads, num_key_value_heads=keys, tie_word_embeddings=tied, max_position_embeddings=8192,
    )  # fmt: skip
    precision: Precision = TypeAdapter(AnyPrecision).validate_python(PRECISIONS[name])
    settings = PRECISIONS[name]
    half = settings["kind"] == "awq" or settings.get("compute_dtype") == "float16"
    dtype = torch.float16 if half else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    kind = settings["kind"]
    if kind in ("int8", "fp8"):
        _by_torchao(model, settings)
    elif kind == "bnb":
        _replace(model, lambda layer: _bnb_layer(layer, settings["format"], device))
    elif kind in ("gptq", "awq"):
        _by_gptqmodel(model, kind, device, dtype, kernel)
    gc.collect()
    return model, precision


def _linear(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    yield from [(name, each) for name, each in model.model.named_modules() if isinstance(each, nn.Linear)]


def _replace(model: Any, packed: Callable[[nn.Linear], nn.Module]) -> None:
    for name, layer in _linear(model):
        model.model.set_submodule(name, packed(layer))


def _by_torchao(model: Any, settings: dict[str, Any]) -> None:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
        PerTensor,
        quantize_,
    )

    if settings["kind"] == "int8":
        config = Int8WeightOnlyConfig(set_inductor_config=False)
    else:
        granularity = PerRow() if settings["scales"] == "row" else PerTensor()
        config = Float8DynamicActivationFloat8WeightConfig(granularity=granularity, set_inductor_config=False)
    quantize_(model.model, config)


def _bnb_layer(layer: nn.Linear, form: str, device: str) -> nn.Module:
    import bitsandbytes as bnb

    bias = layer.bias is not None
    with torch.device("meta"):
        if form == "nf4":
            packed = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, bias, layer.weight.dtype, compress_statistics=False,
                quant_type="nf4",
            )  # fmt: skip
        else:
            packed = bnb.nn.Linear8bitLt(
                layer.in_features, layer.out_features, bias, has_fp16_weights=False, threshold=6.0
            )
    weight = layer.weight.data.cpu() if form == "int8" else layer.weight.data
    if form == "nf4":
        made = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=False, quant_type="nf4", module=packed
        )
        packed.weight = made.to(device)
    else:
        packed.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
    packed.bias = layer.bias
    return packed


def _by_gptqmodel(model: Any, kind: str, device: str, dtype: torch.dtype, backend: str) -> None:
    from gptqmodel.quantization import METHOD
    from gptqmodel.utils.importer import hf_select_quant_linear_v2
    from gptqmodel.utils.model import hf_gptqmodel_post_init

    is_gptq = kind == "gptq"
    kernel = hf_select_quant_linear_v2(
        bits=4, group_size=128, desc_act=False, sym=is_gptq, format="gptq" if is_gptq else "gemm",
        quant_method=METHOD.GPTQ if is_gptq else METHOD.AWQ, zero_point=None if is_gptq else True,
        backend=backend if device != "cpu" else "auto", device_map={"": device}, pack=False, dtype=dtype,
    )  # fmt: skip

    def packed(layer: nn.Linear) -> nn.Module:
        made = kernel(
            bits=4, group_size=128, sym=is_gptq, desc_act=False, in_features=layer.in_features,
            out_features=layer.out_features, bias=layer.bias is not None, pack_dtype=torch.int32,
            register_buffers=True, dtype=dtype,
        ).to(device)  # fmt: skip
        made.qweight.data.copy_(torch.randint_like(made.qweight, -(2**31), 2**31 - 1))
        made.qzeros.data.fill_(0x77777777)
        # Sixteen levels around zero, with the spread of the weights that they stand for.
        made.scales.data.fill_(0.02 / 4.6)
        if is_gptq:
            made.g_idx.data.copy_(torch.arange(layer.in_features) // 128)
        if layer.bias is not None:
            made.bias.data.copy_(layer.bias)
        return made

    _replace(model, packed)
    hf_gptqmodel_post_init(model, use_act_order=False)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Energy:
    """What the GPU has taken, in J, by its own counter; nothing on a CPU."""

    def __init__(self) -> None:
        self.handle = None
        if torch.cuda.is_available():
            pynvml.nvmlInit()
            self.handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def now(self) -> float | None:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1e3 if self.handle else None


def by_turns(decoding: Decoding, bare: Callable[[], object], energy: Energy, batch: int) -> Row:
    """Generate for a window, by turns with the bare way, and what came out."""
    found, plain = [], []
    synchronize()
    joules, start = energy.now(), time.perf_counter()
    while not found or time.perf_counter() - start < WINDOW_S:
        found.append(decoding.run())
        began = time.perf_counter()
        bare()
        synchronize()
        plain.append(time.perf_counter() - began)
    spent, taken = time.perf_counter() - start, energy.now()
    times = sorted(second for each in found for second in each.token_s)
    seconds = sum(each.total_s for each in found) / len(found)
    row: Row = {
        "ms_generation": 1e3 * seconds,
        "ms_prefill": 1e3 * sum(each.first_token_s for each in found) / len(found),
        "ms_token": 1e3 * times[len(times) // 2],
        "tokens_per_s": NEW_TOKENS * batch / seconds,
        "over_bare": seconds * len(plain) / sum(plain),
        "generations": len(found),
    }
    if joules is not None and taken is not None and spent > 1:
        tokens = (len(found) + len(plain)) * NEW_TOKENS * batch
        row |= {"J_token": (taken - joules) / tokens, "power_W": (taken - joules) / spent}
    return row


def measured(model: Any, way: str, batch: int, device: str, energy: Energy) -> Row:
    """The row of a model at one batch, generating in one way."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.config.vocab_size, (batch, PROMPT_TOKENS), generator=generator).to(device)
    _reset_peak()
    if way == "generate":
        return _by_generate(model, prompt, device, energy)
    try:
        graphs = Graphs(model, prompt, NEW_TOKENS, device)
    except CellFailure as failure:
        return {"status": failure.status, "reason": failure.reason}

    def replay(tokens: int = NEW_TOKENS) -> None:
        for graph in (graphs.prefill, *[graphs.step] * (tokens - 1)):
            graph.replay()

    replay(8)
    return by_turns(GraphedDecoding(graphs, NEW_TOKENS), replay, energy, batch)


def _by_generate(model: Any, prompt: torch.Tensor, device: str, energy: Energy) -> Row:
    @torch.inference_mode()
    def bare(tokens: int = NEW_TOKENS) -> None:
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, min_new_tokens=tokens,
            max_new_tokens=tokens,
        )  # fmt: skip

    # The first generation of a length takes two to three times as long: memory and kernels are found in it.
    bare()
    return by_turns(TimedDecoding(model, prompt, NEW_TOKENS, device), bare, energy, prompt.shape[0])


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_gb(before: int) -> float | None:
    return (torch.cuda.max_memory_allocated() - before) / 1e9 if torch.cuda.is_available() else None


class Table:
    """The CSV: rows that are there, and new ones, written at once."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(",".join(COLUMNS) + "\n")
        with open(path) as stream:
            rows = [row for row in csv.DictReader(stream) if row["status"] != "failed"]
        self.done = {tuple(row[key] for key in COLUMNS[:4]) for row in rows}

    def add(self, row: Row) -> None:
        with open(self.path, "a", newline="") as stream:
            rounded = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
            csv.DictWriter(stream, COLUMNS, restval="").writerow(rounded)
        print(" ".join(f"{value}" for value in rounded.values()), flush=True)

    def has(self, shape: str, name: str, batch: int, way: str) -> bool:
        return (shape, name, str(batch), way) in self.done


def main(arguments: list[str] | None = None) -> None:
    """Take the rows in the order of the arguments until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1.5b", "7b"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64, 8])
    parser.add_argument("--until-s", type=float, default=1e9, help="seconds after which no model is begun")
    parser.add_argument("--rehearse", action="store_true")
    asked = parser.parse_args(arguments)
    name_of_device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    table, energy, began = Table(asked.output / "precisions.csv"), Energy(), time.monotonic()
    for shape in ["rehearsal"] if asked.rehearse else asked.shapes:
        for name in asked.precisions:
            if time.monotonic() - began > asked.until_s:
                return
            start = {"shape": shape, "precision": name, "device": name_of_device}
            try:
                _measure(start, [(way, batch) for way in asked.ways for batch in asked.batches], table, energy)
            except Exception as error:  # nor a model that cannot be built
                table.add(start | {"status": "failed", "reason": _first_line(error)})
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _measure(start: Row, wanted: list[tuple[str, int]], table: Table, energy: Energy) -> None:
    shape, name = start["shape"], start["precision"]
    missing = [(way, batch) for way, batch in wanted if not table.has(shape, name, batch, way)]
    if not missing:
        return
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    # Libraries keep workspaces of each stream that there was, and some of them a model.
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    model, precision = build(shape, name, device)
    held = (torch.cuda.memory_allocated() - before) / 1e9 if torch.cuda.is_available() else None
    common = start | {"weights_GB": held, "kernel": precision.running_kernel(model)}
    for way, batch in missing:
        row: Row = {"batch": batch, "way": way, "status": "ok"}
        try:
            row |= measured(model, way, batch, device, energy)
        except torch.cuda.OutOfMemoryError:
            row["status"] = "oom"
        except Exception as error:  # a row that fails ends no other
            row |= {"status": "failed", "reason": _first_line(error)}
        table.add(common | {"peak_GB": _peak_gb(before)} | row)
        gc.collect()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


if __name__ == "__main__":
    main()
