"""Fine-tuning: the stage's step against a bare loop with peft, memory by method, and Table 7 of the tiny study.

    python benchmarks/finetune.py [--parts step memory table7] [--output figures.json]

step    LoRA on a Llama of a million parameters, 8 samples a step: the stage as the workflow runs it, and a bare loop of
        forward, backward, clipping, fused AdamW and schedule over the same model and the same batches. Each side is a
        process of its own, in turn, `--repeats` times; the figure is the median of their times per step.
memory  every method on a Llama of 26 million parameters, one sample per micro batch, through the stage: the highest
        memory of the device, or of the process tree where the device is the CPU, in the steady steps. A micro batch of
        a thousand tokens would weigh more than weights, gradients and optimizer of a model of this size, and low-rank
        methods with dropout keep more of it than others.
table7  wall time of `results/table7.csv` under profiles/local, once its two base models are there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from effllm.results.training import Efficiency, FinetuningQuality
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import parse_study
from effllm.study.inheritance import read_study

REPOSITORY = Path(__file__).resolve().parents[1]
SHAPES = {
    "1m": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "26m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
}
WARMUP_STEPS = 3


def main() -> None:
    """Run the parts, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5, help="of part step")
    parser.add_argument("--steps", type=int, default=120, help="of part step, in each process")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare_loop(*map(Path, arguments.bare))
        return
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        for part in arguments.parts:
            figures[part] = PARTS[part](Path(directory) / part, arguments)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


class Bench:
    """A study of one random local model, and its nodes run as programs."""

    def __init__(self, root: Path, shape: str, **suite: Any):
        self.root = root
        root.mkdir(parents=True)
        raw = read_study(REPOSITORY / "config" / "tiny.yaml")
        raw |= {"tables": {}, "pretraining": {}, "models": {}, "finetuning": {}}
        self.graph = Graph(parse_study(raw, "benchmark"), str(root / "results"))
        self.run("tokenizer", "python-docs-2k")
        save_random_model(root / "results" / "tokenizer" / "python-docs-2k" / "tokenizer", root / "model", shape)
        raw["models"] = {"bench": {"source": {"kind": "local", "path": str(root / "model")}}}
        tiny = read_study(REPOSITORY / "config" / "tiny.yaml")["finetuning"]["describe"]
        raw["finetuning"] = {"bench": tiny | {"models": ["bench"]} | suite}
        self.graph = Graph(parse_study(raw, "benchmark"), str(root / "results"))

    def run(self, stage: str, id: str) -> Path:
        """The directory of a node's artifact, built anew; its parents only if they are missing."""
        output = Path(self.graph.manifest(stage, id)).parent
        argv = [sys.executable, "-m", STAGES[stage].module, "--output", str(output)]
        for name, parents in self.graph.parents(stage, id).items():
            for path in [parents] if isinstance(parents, str) else parents:
                if path.endswith("manifest.json") and not Path(path).exists():
                    self.run(*Path(path).parts[-3:-1])
                argv += ["--input", f"{name}={path}"]
        spec = self.root / "spec.json"
        spec.write_text(json.dumps(self.graph.spec(stage, id)))
        if output.exists():
            subprocess.run(["rm", "-r", str(output)], check=True)
        finished = subprocess.run([*argv, "--spec", str(spec)], capture_output=True, text=True)
        if finished.returncode:
            sys.exit(finished.stdout + finished.stderr)
        return output


def save_random_model(tokenizer: Path, target: Path, shape: str) -> None:
    """A Llama of random weights with a tokenizer, as `save_pretrained` writes it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    vocabulary = AutoTokenizer.from_pretrained(tokenizer)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(vocabulary),
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=vocabulary.eos_token_id,
        **SHAPES[shape],
    )
    set_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(target)
    vocabulary.save_pretrained(target)


def compare_step(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of both sides, in turn."""
    bench = Bench(
        root,
        "1m",
        methods=["lora"],
        micro_batch_size_by_method={},
        parallel_by_method={},
        max_steps=arguments.steps,
        checkpoint_every_steps=arguments.steps,
    )
    times: dict[str, list[float]] = {"stage": [], "bare": []}
    for _ in range(arguments.repeats):
        output = bench.run("finetune", "bench.bench.lora")
        times["stage"].append(
            json.loads((output / "records" / "efficiency.json").read_text())["latency_s_per_iteration"]
        )
        result = root / "bare.json"
        instructions = root / "results" / "instructions" / "stdlib-describe"
        argv = [sys.executable, __file__, "--bare", str(root / "spec.json"), str(instructions), str(result)]
        subprocess.run(argv, check=True, capture_output=True)
        times["bare"].append(json.loads(result.read_text())["seconds_per_step"])
    medians = {side: statistics.median(values) for side, values in times.items()}
    ratio = medians["stage"] / medians["bare"]
    print(f"step: stage {medians['stage'] * 1e3:.1f} ms, bare loop {medians['bare'] * 1e3:.1f} ms, ratio {ratio:.3f}")
    return {"seconds_per_step": times, "median_s": medians, "ratio": ratio}


def bare_loop(spec: Path, instructions: Path, result: Path) -> None:
    """What a user would write with peft and torch alone, over the batches that the stage makes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

    from effllm.data.instructions.batches import Collate, SequenceDataset, take_indices
    from effllm.data.instructions.encoding import encode
    from effllm.data.instructions.samples import read_samples
    from effllm.data.instructions.templates import set_template
    from effllm.training.consumed import sample_order
    from effllm.training.suites import FinetuningRun

    run = FinetuningRun.model_validate(json.loads(spec.read_text())["config"])
    path = spec.parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(path)
    set_template(tokenizer, run.encoding, "bench")
    sequences = encode(read_samples(instructions, "train"), tokenizer, run.encoding).sequences
    recipe = run.recipe(len(sequences))
    order = sample_order(len(sequences), run.samples_per_step, recipe.max_steps, run.seed).reshape(recipe.max_steps, -1)
    dataset, collate = SequenceDataset(sequences), Collate(tokenizer.eos_token_id, packing=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.use_deterministic_algorithms(run.deterministic)
    torch.manual_seed(run.seed)
    method = run.method
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=method.target_modules,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), config).to(device).train()
    model.config.use_cache = False
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=run.learning_rate, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.optimizer.warmup_steps, recipe.max_steps)
    for step, indices in enumerate(order):
        if step == WARMUP_STEPS:
            started = time.perf_counter()
        batch = collate([dataset[int(index)] for index in indices])
        take_indices(batch)
        loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.optimizer.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / (recipe.max_steps - WARMUP_STEPS)
    result.write_text(json.dumps({"seconds_per_step": seconds, "loss": loss.item()}))


def compare_memory(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of every method of the tiny study, through the stage."""
    bench = Bench(
        root,
        "26m",
        micro_batch_size=1,
        micro_batch_size_by_method={},
        max_steps=10,
        checkpoint_every_steps=10,
        held_out_samples=8,
    )
    peaks = {}
    for method in bench.graph.study.finetuning["bench"].methods:
        output = bench.run("finetune", f"bench.bench.{method}")
        summary = Efficiency.read(output).telemetry
        peak, scope = summary.allocator_peak_gb, "allocator"
        if peak is None:
            peak, scope = summary.memory_host_peak_gb, "process tree"
        parameters = FinetuningQuality.read(output).parameters_trainable
        peaks[method] = {"peak_gb": peak, "scope": scope, "parameters_trainable": parameters}
        print(f"memory: {method:14} {peak:6.3f} GB ({scope}), {parameters / 1e6:.2f} million trained")
    return peaks


def time_table7(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Wall time of Table 7 of the tiny study after its base models."""
    root.mkdir(parents=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--directory", str(root), "--profile", str(REPOSITORY / "profiles" / "local"), "--"]
    graph = Graph(parse_study(read_study(REPOSITORY / "config" / "tiny.yaml"), "tiny"))
    bases = [graph.weights(model) for model in graph.study.finetuning[graph.study.tables.table7.suite].models]
    seconds = {}
    for name, targets in (("base models", bases), ("table 7", ["results/table7.csv"])):
        started = time.monotonic()
        finished = subprocess.run([*command, *targets], capture_output=True, text=True)
        if finished.returncode:
            sys.exit(finished.stdout + finished.stderr)
        seconds[name] = time.monotonic() - started
    print(f"table 7: {seconds['table 7']:.0f} s after {seconds['base models']:.0f} s for its base models")
    return seconds


PARTS = {"step": compare_step, "memory": compare_memory, "table7": time_table7}

if __name__ == "__main__":
    main()
