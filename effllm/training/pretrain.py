"""Stage `pretrain`: a model trained from random weights on a token stream.

in:  tokens, tokenizer
out: model/ (config, safetensors, tokenizer), training.json (held-out perplexity, parameters, tokens seen)
     records/loss_curve.json, records/efficiency.json, records/telemetry/
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from effllm.data.tokens import PackedTokens
from effllm.models import arithmetic
from effllm.models.families import model_config, random_model
from effllm.models.loading import load_causal_lm
from effllm.models.saving import save_causal_lm
from effllm.stage import Job, main
from effllm.study.training import PretrainingRun
from effllm.training.held_out import held_out_loss
from effllm.training.run import Setup, train


def build(job: Job) -> None:
    """Train, or go on from the last complete checkpoint in the scratch, and score the held-out text."""
    run = job.config(PretrainingRun)
    model, _ = train(job, run, setup, load)
    held_out = held_out_loss(
        model, PackedTokens.open(job.inputs["tokens"].directory, "held_out"), run.sequence_length, run.micro_batch_size
    )
    model.config.use_cache = True
    save_causal_lm(model, job.output / "model")
    _tokenizer(job).save_pretrained(job.output / "model")
    count = arithmetic.parameter_count(model.config)
    job.write_json(
        "training.json",
        {
            "cache_bytes_per_token": arithmetic.cache_bytes_per_token(
                model.config, torch.bfloat16, run.sequence_length
            ),
            "held_out_bits_per_byte": held_out.bits_per_byte,
            "held_out_loss": held_out.loss,
            "held_out_loss_stderr": held_out.loss_stderr,
            "held_out_perplexity": held_out.perplexity,
            "held_out_tokens": held_out.tokens,
            "parameters": count.total,
            "parameters_active": count.active,
            "parameters_without_embeddings": count.total - count.embedding,
            "seed": run.seed,
            "tokens_seen": run.max_steps * _tokens_per_step(run),
            "train_sequences": len(_sequences(job, run)),
        },
    )


def setup(job: Job) -> Setup:
    """The model at its random weights, and the training part of the token stream."""
    run = job.config(PretrainingRun)
    tokenizer = _tokenizer(job)
    config = model_config(
        run.architecture,
        len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    flops = run.global_batch_size * arithmetic.training_flops(config, run.sequence_length)
    return Setup(
        recipe=run,
        model=random_model(config, run.seed),
        dataset=_sequences(job, run),
        collate=collate,
        tokens_of_step=lambda _: _tokens_per_step(run),
        flops_of_step=lambda _: flops,
    )


def load(job: Job, directory: Path) -> PreTrainedModel:
    """What the ranks have saved, on this process's device."""
    return load_causal_lm(directory).to("cuda" if torch.cuda.is_available() else "cpu")


def collate(sequences: list) -> dict[str, torch.Tensor]:
    """Stack token sequences of equal length; the model shifts the labels itself."""
    ids = torch.stack([torch.from_numpy(sequence) for sequence in sequences])
    return {"input_ids": ids, "labels": ids}


def _tokenizer(job: Job):
    return AutoTokenizer.from_pretrained(job.inputs["tokenizer"].directory / "tokenizer", trust_remote_code=False)


def _sequences(job: Job, run: PretrainingRun):
    return PackedTokens.open(job.inputs["tokens"].directory, "train").sequences(run.sequence_length)


def _tokens_per_step(run: PretrainingRun) -> int:
    return run.global_batch_size * run.sequence_length


if __name__ == "__main__":
    main("pretrain", build)
