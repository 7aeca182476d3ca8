"""Stage `pretrain`: a model trained from random weights on a token stream.

in:  tokens, tokenizer (none with synthetic tokens), order (none for a run in random order)
out: model/ (config, safetensors, tokenizer), training.json (held-out perplexity, parameters, tokens seen)
     records/loss_curve.json, records/efficiency.json, records/telemetry/, records/held_out.parquet (the losses of
     the held-out documents, in `HeldOut.by_document`'s columns)

A run on synthetic tokens measures and keeps no model: what it has learned is worth no more than random weights.
"""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from effllm.data import arrays
from effllm.data.order.build import DIFFICULTY
from effllm.data.tokens import PackedTokens, Sequences
from effllm.errors import UserError
from effllm.models import costs
from effllm.models.decoder import EffForCausalLM
from effllm.models.families import model_config, random_model
from effllm.models.loading import load_causal_lm, moved
from effllm.models.saving import save_causal_lm
from effllm.results.training import PretrainingQuality
from effllm.runtime.stage import Job, main
from effllm.training.consumed import Ordered
from effllm.training.curriculum import training_order
from effllm.training.held_out import held_out_loss, loss_on_the_way
from effllm.training.run import MapStyle, Setup, train
from effllm.training.settings import PretrainingRun

_SCORES = tuple(
    f"held_out_{figure}" for figure in ("bits_per_byte", "documents", "loss", "loss_stderr", "perplexity", "tokens")
)


def build(job: Job) -> None:
    """Train, or go on from the last complete checkpoint in the scratch, and score the held-out text."""
    run = job.config(PretrainingRun)
    model, _ = train(job, run, setup, load)
    unscored = _train_tokens(job).unscored
    if unscored is None:
        scores = _score(job, run, model)
        model.config.use_cache = True
        save_causal_lm(model, job.output / "model")
        _tokenizer(job).save_pretrained(job.output / "model")
    else:
        scores = {**dict.fromkeys(_SCORES), "reasons": dict.fromkeys(_SCORES, unscored)}
    count = costs.parameter_count(model.config)
    job.write(
        PretrainingQuality(
            **scores,
            cache_bytes_per_token=costs.cache_bytes_per_token(model.config, torch.bfloat16, run.sequence_length),
            parameters=count.total,
            parameters_active=count.active,
            parameters_without_embeddings=count.total - count.embedding,
            seed=run.seed,
            tokens_seen=run.max_steps * _tokens_per_step(run),
            train_sequences=len(_sequences(job, run)),
        )
    )


def setup(job: Job) -> Setup[PreTrainedModel]:
    """The model at its random weights, and the training part of the token stream."""
    run = job.config(PretrainingRun)
    tokens = _train_tokens(job)
    config = _config(job, run, tokens)
    # Weights that nobody keeps need not be the same everywhere, and a CPU takes minutes to draw billions of them. GPUs
    # of one kind draw the same ones: what one GPU trains is compared with what several do.
    on_device = tokens.unscored and torch.cuda.is_available()
    with torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if on_device else "cpu"):
        model = random_model(config, run.seed)
    if on_device and run.parallel.strategy != "single":
        model.cpu()
        torch.cuda.empty_cache()
    flops = run.global_batch_size * costs.training_flops(config, run.sequence_length)
    return Setup(
        recipe=run.model_copy(update={"optimizer": run.scaled_optimizer}),
        model=model,
        forward_options={"skip_logits": True} if isinstance(model, EffForCausalLM) else {},
        dataset=_in_order(job, run, _sequences(job, run)),
        collate=collate,
        shuffle=run.order is None,
        tokens_of_step=lambda _: _tokens_per_step(run),
        flops_of_step=lambda _: flops,
        kernels=run.kernels.wanted(),
        keeps_weights=tokens.unscored is None,
        **_score_on_the_way(job, run),
    )


def load(job: Job, directory: Path) -> PreTrainedModel:
    """What the ranks have saved, on this process's device; where they keep no weights, the model without any."""
    run, tokens = job.config(PretrainingRun), _train_tokens(job)
    if tokens.unscored:
        with torch.device("meta"):
            return random_model(_config(job, run, tokens), run.seed)
    return moved(load_causal_lm(directory), "cuda" if torch.cuda.is_available() else "cpu")


def collate(sequences: list) -> dict[str, torch.Tensor]:
    """Stack token sequences of equal length; the model shifts the labels itself."""
    ids = torch.stack([torch.from_numpy(sequence) for sequence in sequences])
    return {"input_ids": ids, "labels": ids}


def _score(job: Job, run: PretrainingRun, model: PreTrainedModel) -> dict[str, Any]:
    stream = PackedTokens.open(job.inputs["tokens"].directory, "held_out")
    held_out = held_out_loss(model, stream, run.sequence_length, run.micro_batch_size)
    pq.write_table(held_out.by_document, job.records / "held_out.parquet")
    scores = {key: getattr(held_out, key.removeprefix("held_out_")) for key in _SCORES}
    return {**scores, "reasons": {key: "one held-out document" for key, value in scores.items() if value is None}}


def _score_on_the_way(job: Job, run: PretrainingRun) -> dict[str, Any]:
    """What a setup is told of the run's held-out curve."""
    if (curve := run.held_out_curve) is None:
        return {}
    held_out = PackedTokens.open(job.inputs["tokens"].directory, "held_out")
    return {
        "score_after": curve.steps(run.max_steps),
        "score": lambda model: loss_on_the_way(model, held_out, run.sequence_length, curve.tokens),
    }


def _config(job: Job, run: PretrainingRun, tokens: PackedTokens) -> PreTrainedConfig:
    if tokens.unscored:
        return model_config(run.architecture, tokens.vocab_size)
    tokenizer = _tokenizer(job)
    return model_config(
        run.architecture,
        len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _train_tokens(job: Job) -> PackedTokens:
    return PackedTokens.open(job.inputs["tokens"].directory, "train")


def _tokenizer(job: Job) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(job.inputs["tokenizer"].directory / "tokenizer", trust_remote_code=False)


def _sequences(job: Job, run: PretrainingRun) -> Sequences:
    return _train_tokens(job).sequences(run.sequence_length)


def _in_order(job: Job, run: PretrainingRun, sequences: Sequences) -> MapStyle:
    """The sequences as training takes them one by one; for a run in random order as they are."""
    if run.order is None:
        return sequences
    if len(sequences) < run.global_batch_size:
        raise UserError(
            f"pretraining.{job.id}.order: {len(sequences)} sequences of {run.sequence_length} tokens are fewer than "
            f"one step takes ({run.global_batch_size}): lower global_batch_size, or take more text."
        )
    difficulty = arrays.load(job.inputs["order"].directory / DIFFICULTY)
    return Ordered(sequences, training_order(run.order, difficulty, run.global_batch_size, run.max_steps, run.seed))


def _tokens_per_step(run: PretrainingRun) -> int:
    return run.global_batch_size * run.sequence_length


if __name__ == "__main__":
    from effllm.stages.pretrain import PretrainStage

    main(PretrainStage(), build)
