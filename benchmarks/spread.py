"""A model over the GPUs of this machine: tokens against those of one GPU, and one that no single GPU holds, profiled.

    python benchmarks/spread.py --output DIRECTORY [--repeats 2] [--window-s 8]

Random weights. `tokens.json`: the 1.5B shape of Qwen2.5, saved and loaded as the stages load it, on one GPU twice and
on two once: how many of 8 x 128 greedy tokens agree, in float32 and bfloat16. `72b.json`: the shape of Qwen2.5-72B,
each weight made on the GPU where it belongs, measured by the code of stage `profile`. A machine with one GPU or none
runs the same on shapes of a few thousand parameters, to try the script.
"""

import argparse
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import dispatch_model, init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

from effllm.models.loading import load_causal_lm
from effllm.models.placement import device_map, keep_hooks_at_parts, place, require_on_devices
from effllm.profiling.inference import profile_model
from effllm.profiling.placement import ProfileConfig, profile_need
from effllm.quantization.cast import CastPrecision
from effllm.telemetry import joint_info

IS_TRIAL = torch.cuda.device_count() < 2
SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4} if IS_TRIAL else {}
SHAPES: dict[str, dict[str, Any]] = {
    "1.5b": {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "72b": {
        "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 256, 128


def config_of(shape: str) -> Any:
    """The configuration of a shape; of a few thousand parameters where this is a trial."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2} if IS_TRIAL else {}
    return AutoConfig.for_model("qwen2", max_position_embeddings=32768, **SHAPES[shape] | SMALL | heads)


def compare_tokens(folder: Path) -> dict[str, Any]:
    """Tokens that agree: one GPU with itself, and with two."""
    config = config_of("1.5b")
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    prompts = torch.randint(config.vocab_size, (PROMPTS, PROMPT_TOKENS))
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        one, again, two = (_answers(folder, dtype, prompts, count) for count in (1, 1, 2))
        found[str(dtype).removeprefix("torch.")] = {
            name: {"tokens": (one == other).float().mean().item(), "whole": (one == other).all(1).sum().item()}
            for name, other in (("one_again", again), ("two", two))
        }
    return found


def _answers(folder: Path, dtype: torch.dtype, prompts: torch.Tensor, count: int) -> torch.Tensor:
    devices = ["cpu"] if IS_TRIAL else [f"cuda:{place}" for place in range(count)]
    model: Any = load_causal_lm(folder, dtype, **device_map(devices)).eval()
    require_on_devices(model, devices)
    keep_hooks_at_parts(model)
    there = prompts.to(devices[0])
    lengths = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        output = model.generate(there, attention_mask=torch.ones_like(there), **lengths)
    return output[:, prompts.shape[1] :].cpu()


def made_in_place(config: Any, devices: list[str]) -> Any:
    """A model of random weights, each made on the device where loading would put it."""
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    places: dict[str, Any] = {"": devices[0]}
    if len(devices) > 1:
        memory = device_map(devices)["max_memory"]
        memory = get_balanced_memory(model, memory, model._no_split_modules)
        places = infer_auto_device_map(model, memory, model._no_split_modules)
    for name, weight in list(model.named_parameters()):
        at = next(of for part, of in places.items() if not part or name == part or name.startswith(f"{part}."))
        made = torch.empty(weight.shape, dtype=weight.dtype, device=at)
        made = made.normal_(0, 0.02) if made.ndim > 1 else made.fill_(float("norm" in name))
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, torch.nn.Parameter(made, requires_grad=False))
    if len(devices) > 1:
        model = dispatch_model(model, places)
        keep_hooks_at_parts(model)
    return model


def profile_large(folder: Path, repeats: int, window_s: float) -> dict[str, Any]:
    """profile.json of the shape that one GPU does not hold."""
    config = config_of("72b")
    config.save_pretrained(folder)
    spec = ProfileConfig.model_validate(
        {
            "workloads": {"single": {"prompt_tokens": 512, "new_tokens": NEW_TOKENS}},
            "idle_s": 3.0,
            "warmup_maximum": 6,
            "repeats": repeats,
            "minimum_window_s": window_s,
            "cooldown_s": 0.2,
            "maximum_relative_interval": 0.05,
        }
    )
    with torch.device("meta"):
        weights_b = 2 * AutoModelForCausalLM.from_config(config).num_parameters()
    devices = place(profile_need(weights_b, folder, spec), None)
    model = made_in_place(config, devices)
    require_on_devices(model, devices)
    files: dict[str, str] = {}
    job: Any = SimpleNamespace(
        id="qwen2.5-72b.bfloat16",
        records=folder / "records",
        config=lambda _: spec,
        write=lambda result: files.update({result.FILE: result.to_json()}),
    )
    precision = CastPrecision(kind="cast", dtype="bfloat16")
    profile_model(job, model, None, precision, weights_b, devices, joint_info(devices))
    return dict(json.loads(files["profile.json"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--window-s", type=float, default=8.0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        large = profile_large(Path(folder, "72b"), arguments.repeats, arguments.window_s)
        (arguments.output / "72b.json").write_text(json.dumps(large, indent=1) + "\n")
        tokens = compare_tokens(Path(folder, "1.5b"))
        (arguments.output / "tokens.json").write_text(json.dumps(tokens, indent=1) + "\n")
    print(json.dumps(tokens, indent=1))


if __name__ == "__main__":
    main()
