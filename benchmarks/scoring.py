"""Scoring of few-shot multiple choice: prompts whose common beginning is read once, against lm-eval's own `hf` model.

    python benchmarks/scoring.py [--items 64] [--rounds 5] [--device cpu] [--shape embedded] [--output figures.json]

The prompts are MMLU-Pro's in form and made up: five examples with ten options each, then a question, and the letters as
answers. lm-eval's model runs with the batch size that `batch_size=auto` finds where memory suffices, 64, without the
search for it, which takes five passes of such a batch with every call. Rounds of all ways follow each other in turn.
Weights are random and the same for all: time depends on the shape, and the answers of all ways are compared.
"""

import argparse
import json
import pydoc_data.topics
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from effllm.evaluation.metered import MeteredLM

LETTERS = "ABCDEFGHIJ"
SHAPES = {
    "embedded": LlamaConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=4096,
    ),
    "1.5b": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        max_position_embeddings=4096, tie_word_embeddings=True,
    ),
}  # fmt: skip
VOCABULARY = {"embedded": 2048, "1.5b": 151_936}


def tokenizer_of(words: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 2,048 words, as the embedded study's."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=["<end>"], initial_alphabet=alphabet)
    bpe.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<end>", pad_token="<end>", model_max_length=4096, add_prefix_space=False
    )


def prompts(items: int) -> list[Instance]:
    """Ten requests an item: the same context, a letter each."""
    rng = random.Random(0)
    words = sorted({word for text in pydoc_data.topics.topics.values() for word in text.split() if word.isalpha()})

    def question() -> str:
        asked = " ".join(rng.choices(words, k=25))
        options = "".join(f"{letter}. {' '.join(rng.choices(words, k=2))}\n" for letter in LETTERS)
        return f"{asked}?\n{options}Answer:"

    shots = "".join(f"{question()} {rng.choice(LETTERS)}\n\n" for _ in range(5))
    pairs = [(shots + asked, f" {letter}") for asked in (question() for _ in range(items)) for letter in LETTERS]
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="embedded")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    tokenizer = tokenizer_of(list(pydoc_data.topics.topics.values()))
    config = SHAPES[arguments.shape]
    config.vocab_size = VOCABULARY[arguments.shape]
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32 if arguments.device == "cpu" else torch.bfloat16
    )
    model = model.to(arguments.device).eval()
    common = {"batch_size": arguments.batch_size, "max_length": None}
    ways = {
        "lm-eval, as with batch_size=auto": HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=64, softmax_dtype="float32"
        ),
        "effllm": MeteredLM(model, tokenizer, **common),
        "effllm, shares_prefixes": MeteredLM(model, tokenizer, **common, shares_prefixes=True),
    }
    requests = prompts(arguments.items)
    answers = {name: way.loglikelihood(requests, disable_tqdm=True) for name, way in ways.items()}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            started = time.perf_counter(), time.process_time()
            way.loglikelihood(requests, disable_tqdm=True)
            wall[name].append(time.perf_counter() - started[0])
            cpu[name].append(time.process_time() - started[1])
    reference = next(iter(ways))
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu",
        "shape": arguments.shape,
        "items": arguments.items,
        "prompt_tokens_median": statistics.median(len(tokenizer.encode(request.args[0])) for request in requests),
        "ways": {},
    }
    for name in ways:
        best = [max(range(10), key=lambda at, own=own: own[at][0]) for own in _by_item(answers[name])]
        theirs = [max(range(10), key=lambda at, own=own: own[at][0]) for own in _by_item(answers[reference])]
        pairs = zip(answers[name], answers[reference], strict=True)
        figures["ways"][name] = {
            "wall_s": statistics.median(wall[name]),
            "cpu_s": statistics.median(cpu[name]),
            "wall_ratio": statistics.median(wall[reference]) / statistics.median(wall[name]),
            "cpu_ratio": statistics.median(cpu[reference]) / statistics.median(cpu[name]),
            "largest_difference_nats": max(abs(one[0] - other[0]) for one, other in pairs),
            "items_answered_alike": sum(one == other for one, other in zip(best, theirs, strict=True)),
        }
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def _by_item(answers: list[tuple[float, bool]]) -> list[list[tuple[float, bool]]]:
    return [answers[start : start + 10] for start in range(0, len(answers), 10)]


if __name__ == "__main__":
    main()
