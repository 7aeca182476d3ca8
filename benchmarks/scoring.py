"""Scoring of few-shot multiple choice: prompts whose common beginning is read once, against lm-eval's own `hf` model.

    python benchmarks/scoring.py [--items 64] [--rounds 5] [--device cpu] [--shape embedded] [--output figures.json]

The prompts are MMLU-Pro's in form and made up: five examples with ten options each, then a question, and the letters as
answers. lm-eval's `batch_size=auto` looks for its batch once, in the same process; this search is timed by itself, and
the rounds of lm-eval run with the batch that it found. What `batch_size: auto` takes here is part of the rounds. Rounds
of all ways follow each other in turn.

Weights are random and the same for all: time depends on the shape, and the answers of all ways are compared. In 16 bits
rounding alone turns some of them, since random weights prefer no letter by much: so lm-eval at half its batch is
compared with lm-eval as well, and a few items are scored in float32 by both. `--threads` is of the tokenizer.
"""

import argparse
import json
import os
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
        max_position_embeddings=4096, vocab_size=2048,
    ),
    "1.5b": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        max_position_embeddings=4096, vocab_size=151_936, tie_word_embeddings=True,
    ),
}  # fmt: skip
# Words of a question and of an option: prompts of 950 tokens and of 1,900.
WORDS = {"embedded": (25, 2), "1.5b": (60, 4)}
Answers = list[tuple[float, bool]]


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


def prompts(items: int, words_asked: int, words_option: int) -> list[Instance]:
    """Ten requests an item: the same context, a letter each."""
    rng = random.Random(0)
    words = sorted({word for text in pydoc_data.topics.topics.values() for word in text.split() if word.isalpha()})

    def question() -> str:
        asked = " ".join(rng.choices(words, k=words_asked))
        options = "".join(f"{letter}. {' '.join(rng.choices(words, k=words_option))}\n" for letter in LETTERS)
        return f"{asked}?\n{options}Answer:"

    shots = "".join(f"{question()} {rng.choice(LETTERS)}\n\n" for _ in range(5))
    pairs = [(shots + asked, f" {letter}") for asked in (question() for _ in range(items)) for letter in LETTERS]
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]


def model_of(shape: str, device: str, dtype: torch.dtype) -> Any:
    """Random weights of a shape, made where they are used."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=dtype)
    return model.eval()


def harness_of(model: Any, tokenizer: Any, batch_size: int | str) -> HFLM:
    """lm-eval's own model, with log-probabilities in float32 as here."""
    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, softmax_dtype="float32")


def timed(way: Any, requests: list[Instance]) -> tuple[Answers, dict[str, float]]:
    """The answers, and seconds: in all, of CPU, and until the tokens of all requests are there."""
    encoded_at = started = time.perf_counter()
    cpu = time.process_time()
    inner = way._loglikelihood_tokens

    def noted(*args: Any, **kwargs: Any) -> Answers:
        nonlocal encoded_at
        encoded_at = time.perf_counter()
        return inner(*args, **kwargs)

    way._loglikelihood_tokens = noted
    answers = way.loglikelihood(requests, disable_tqdm=True)
    way._loglikelihood_tokens = inner
    wall = time.perf_counter() - started
    return answers, {"wall_s": wall, "cpu_s": time.process_time() - cpu, "encoding_s": encoded_at - started}


def compared(answers: Answers, reference: Answers) -> dict[str, Any]:
    """How far two ways agree on the same requests."""

    def best(scores: Answers) -> list[int]:
        rows = [scores[start : start + 10] for start in range(0, len(scores), 10)]
        return [max(range(10), key=lambda at, row=row: row[at][0]) for row in rows]

    return {
        "largest_difference_nats": max(abs(one[0] - other[0]) for one, other in zip(answers, reference, strict=True)),
        "items_answered_alike": sum(one == other for one, other in zip(best(answers), best(reference), strict=True)),
        "items": len(answers) // 10,
    }


def in_float32(shape: str, device: str, tokenizer: Any, requests: list[Instance]) -> dict[str, Any]:
    """Both ways on the first requests, in float32."""
    model = model_of(shape, device, torch.float32)
    theirs = harness_of(model, tokenizer, 2).loglikelihood(requests, disable_tqdm=True)
    ours = MeteredLM(model, tokenizer, batch_size=4, max_length=None, shares_prefixes=True).loglikelihood(requests)
    return compared(ours, theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="embedded")
    parser.add_argument("--threads", type=int, default=1, help="threads of the tokenizer")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(arguments.threads)}
    began = time.perf_counter()
    shape, device = arguments.shape, arguments.device
    tokenizer = tokenizer_of(list(pydoc_data.topics.topics.values()))
    requests = prompts(arguments.items, *WORDS[shape])
    exact = in_float32(shape, device, tokenizer, requests[:80])
    if device != "cpu":
        torch.cuda.empty_cache()
    model = model_of(shape, device, torch.float32 if device == "cpu" else torch.bfloat16)
    automatic = harness_of(model, tokenizer, "auto")
    searched = timed(automatic, requests[:10])[1]["wall_s"]
    found = automatic.batch_sizes[0]
    ways = {
        "lm-eval": harness_of(model, tokenizer, found),
        "effllm": MeteredLM(model, tokenizer, batch_size="auto", max_length=None),
        "effllm, shares_prefixes": MeteredLM(
            model, tokenizer, batch_size="auto", max_length=None, shares_prefixes=True
        ),
    }
    reference, *_ = answers = {name: timed(way, requests)[0] for name, way in ways.items()}
    answers["lm-eval at half its batch"] = timed(harness_of(model, tokenizer, max(1, found // 2)), requests)[0]
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way, requests)[1])
    medians = {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in seconds.items()
    }
    lengths = [len(tokenizer.encode(request.args[0])) for request in requests[::10]]
    figures = {
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
        "shape": shape,
        "items": arguments.items,
        "prompt_tokens_median": statistics.median(lengths),
        "tokenizer_threads": arguments.threads,
        "lm_eval_auto": {"batch_size": found, "search_s": searched},
        "float32": exact,
        "ways": {
            name: {
                **medians[name],
                "batch_size": way.batch_size,
                "wall_ratio": medians[reference]["wall_s"] / medians[name]["wall_s"],
                "cpu_ratio": medians[reference]["cpu_s"] / medians[name]["cpu_s"],
                "rounds_wall_s": [one["wall_s"] for one in seconds[name]],
            }
            for name, way in ways.items()
        },
        "compared_with_lm_eval": {
            name: compared(own, answers[reference]) for name, own in answers.items() if name != reference
        },
        "seconds_in_all": time.perf_counter() - began,
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
