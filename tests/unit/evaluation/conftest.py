"""A corpus, tiny models and the stages as the workflow runs them: by spec, inputs and output."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hashlib
import json
import pydoc_data.topics
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from effllm.quantization.cast import CastPrecision
from effllm.quantization.weights import weight_bytes
from effllm.results.quantization import Quantization
from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import run
from effllm.stages import STAGES
from tests.conftest import spec_of
from tests.hub.fixtures import waits  # noqa: F401

END = "<|endoftext|>"
PROTOCOL = {"batch_size": 8, "max_length": None, "bootstrap_iters": 200, "sample_period_s": 0.05, "seed": 0}


def publish_artifact(root, stage, id, build):
    """An artifact with whatever `build(job)` leaves in it."""
    return run(STAGES[stage], build, spec=spec_of(stage, {"id": id}), inputs={}, output=root / stage / id)


def make_corpus(root, id, held_out, train):
    def build(job):
        for part, texts in (("held_out", held_out), ("train", train)):
            rows = [{"text": text, "id": hashlib.sha256(text.encode()).hexdigest()[:12]} for text in texts]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), job.output / f"{part}-00000.parquet")

    return publish_artifact(root, "corpus", id, build)


def quantization_of(model):
    """What the quantize stage would say of a model that it left as it was."""
    precision = CastPrecision(kind="cast", dtype="bfloat16")
    return Quantization(nominal_bits=16, precision=precision.plain(), weights=weight_bytes(model, precision))


def make_model(root, id, model, tokenizer, generation=None):
    """`generation` is what its generation_config.json says, in place of what Transformers writes."""

    def build(job):
        model.save_pretrained(job.output / "model")
        tokenizer.save_pretrained(job.output / "model")
        if generation is not None:
            (job.output / "model" / "generation_config.json").write_text(json.dumps(generation))
        job.write(quantization_of(job.output / "model"))

    return publish_artifact(root, "quantize", id, build)


def make_benchmark(root, id, settings, corpus=None, files=()):
    """Run the benchmark stage, on a corpus's artifact or on plain files."""
    from effllm.evaluation.benchmark import build

    inputs = {"corpus": [corpus.directory / "manifest.json"]} if corpus else {"files": list(files)} if files else {}
    output = root / "benchmark" / id
    return run(
        STAGES["benchmark"], build, spec=spec_of("benchmark", {"benchmark": settings}), inputs=inputs, output=output
    )


def held_out_benchmark(root, corpus, task, items, seed=0):
    settings = {"kind": "held_out", "corpus": corpus.manifest.id, "task": task, "items": items, "seed": seed}
    return make_benchmark(root, f"{task}-{items}-{seed}", settings, corpus)


def evaluate_model(root, model, benchmark, chat=None, reference=None, **protocol):
    """Run the evaluate stage; `chat` is what the study says of prompts in a chat template.

    `reference` is the model with which this one is compared token by token.
    """
    from effllm.evaluation.evaluate import build

    return run(
        STAGES["evaluate"],
        build,
        spec=spec_of("evaluate", {"protocol": {**PROTOCOL, **protocol}} | ({"chat": chat} if chat else {})),
        inputs={
            "model": [model.directory / "manifest.json"],
            "benchmark": [benchmark.directory / "manifest.json"],
        }
        | ({"reference": [reference.directory / "manifest.json"]} if reference else {}),
        output=root / "evaluate" / f"{model.manifest.id}.{benchmark.manifest.id}",
    )


def rows_of(benchmark: Artifact):
    """Rows of a held-out benchmark."""
    (task,) = benchmark.json("benchmark.json")["tasks"]
    return pyarrow.parquet.read_table(benchmark.directory / task["data_files"]["test"]).to_pylist()


def samples_of(evaluation: Artifact):
    lines = (evaluation.directory / "records" / "samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Models this small gain nothing by threads, and lose much where other programs run."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def texts():
    """The language reference: every fourth topic held out, (held out, train)."""
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    train = [text for index, text in enumerate(topics) if index % 4]
    return [text for text in topics[::4] if text not in train], train


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session")
def corpus(root, texts):
    return make_corpus(root, "topics", *texts)


@pytest.fixture(scope="session")
def tokenizer(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts[1][:40], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END, model_max_length=2048)


def tiny_llama(tokenizer, seed=0, context=2048, hidden=32):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def model(root, tokenizer):
    """A Llama of random weights in bfloat16: it knows nothing."""
    import torch

    return make_model(root, "random.bf16", tiny_llama(tokenizer).to(torch.bfloat16), tokenizer)
