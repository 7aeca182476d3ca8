"""Stage `pretrain`: a model trained from random weights on a token stream.

in:  tokens, tokenizer
out: model/ (config, safetensors, tokenizer), training.json (held-out perplexity, parameters, tokens seen)
     records/loss_curve.json, records/efficiency.json, records/telemetry/
"""

import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments

from effllm.data.tokens import PackedTokens
from effllm.models.families import random_model
from effllm.stage import Job, main
from effllm.study.models import PretrainingRun
from effllm.telemetry import Telemetry, device_info
from effllm.training.callbacks import ReportProgress, StopAtNaN
from effllm.training.checkpoints import MarkComplete, latest_complete
from effllm.training.held_out import held_out_loss
from effllm.training.measure import MeasureSteps
from effllm.training.preemption import SaveAndStop

SAMPLE_PERIOD_S = 1.0
"""Training is sampled once a second, as in arXiv 2505.13840."""


def build(job: Job) -> None:
    """Train, or go on from the last complete checkpoint in the scratch, and score the held-out text."""
    run = job.config(PretrainingRun)
    tokens = job.inputs["tokens"].directory
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["tokenizer"].directory / "tokenizer", trust_remote_code=False)
    model = random_model(run.architecture, tokenizer, run.seed)
    sequences = PackedTokens.open(tokens, "train").sequences(run.sequence_length)
    checkpoint = latest_complete(job.scratch)
    steps_before = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
    if checkpoint:
        print(f"progress: {job.id} going on from step {steps_before}", flush=True)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    with Telemetry(job.records / "telemetry", device=device, period_s=SAMPLE_PERIOD_S) as telemetry:
        measure = MeasureSteps(telemetry)
        trainer = Trainer(
            model=model,
            args=training_arguments(run, str(job.scratch)),
            train_dataset=sequences,
            data_collator=collate,
            callbacks=[MarkComplete(), StopAtNaN(), ReportProgress(job.id), measure, SaveAndStop(job.id)],
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    held_out = held_out_loss(model, PackedTokens.open(tokens, "held_out"), run.sequence_length, run.micro_batch_size)
    model.config.use_cache = True
    model.save_pretrained(job.output / "model")
    tokenizer.save_pretrained(job.output / "model")
    tokens_per_step = run.global_batch_size * run.sequence_length
    job.write_json(
        "training.json",
        {
            "held_out_bits_per_byte": held_out.bits_per_byte,
            "held_out_loss": held_out.loss,
            "held_out_perplexity": held_out.perplexity,
            "held_out_tokens": held_out.tokens,
            "parameters": model.num_parameters(),
            "parameters_without_embeddings": model.num_parameters(exclude_embeddings=True),
            "tokens_seen": run.max_steps * tokens_per_step,
            "train_sequences": len(sequences),
        },
    )
    curve = [{"step": entry["step"], "loss": entry["loss"]} for entry in trainer.state.log_history if "loss" in entry]
    job.write_json("records/loss_curve.json", {"curve": curve})
    job.write_json(
        "records/efficiency.json",
        {
            **measure.content(tokens_per_step),
            "device": device_info(device),
            "resumed_at_step": steps_before,
            "threads": torch.get_num_threads(),
        },
    )


def training_arguments(run: PretrainingRun, directory: str) -> TrainingArguments:
    """The Trainer's arguments for this run, checkpoints below `directory`."""
    optimizer = run.optimizer
    return TrainingArguments(
        output_dir=directory,
        per_device_train_batch_size=run.micro_batch_size,
        gradient_accumulation_steps=run.global_batch_size // run.micro_batch_size,
        max_steps=run.max_steps,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": optimizer.minimum_learning_rate},
        warmup_steps=optimizer.warmup_steps,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=run.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=run.seed,
        data_seed=run.seed,
        full_determinism=True,
        logging_steps=run.log_every_steps,
        # The filter would replace a NaN by the last good loss, and the run would go on.
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=run.checkpoint_every_steps,
        save_total_limit=2,
        dataloader_num_workers=0,
        report_to="none",
        disable_tqdm=True,
    )


def collate(sequences: list) -> dict[str, torch.Tensor]:
    """Stack token sequences of equal length; the model shifts the labels itself."""
    ids = torch.stack([torch.from_numpy(sequence) for sequence in sequences])
    return {"input_ids": ids, "labels": ids}


if __name__ == "__main__":
    main("pretrain", build)
