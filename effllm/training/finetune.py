"""Stage `finetune`: a base model adapted to instructions by one method.

in:  model (of stage pretrain or model), instructions
out: adapter/ (peft's own format, and the tokenizer) or, where the model itself is trained, model/;
     training.json (held-out loss before and after, what was trained, sizes, digest of the order of samples)
     records/loss_curve.json, records/efficiency.json, records/consumed.jsonl (sample ids by step), records/telemetry/,
     records/held_out.parquet (the losses of the held-out samples before and after)

A run on synthetic instructions measures and keeps no weights: its losses are null with the reason.
"""

import gc
import inspect
import json
import statistics
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from effllm.data.instructions.batches import Collate, ConsumedSamples, SequenceDataset, require_separate_samples
from effllm.data.instructions.encoding import Encoded, encode
from effllm.data.instructions.samples import read_samples
from effllm.data.instructions.synthetic import read_synthetic
from effllm.data.instructions.templates import set_template
from effllm.errors import UserError
from effllm.models import costs
from effllm.models.loading import load_causal_lm, load_tokenizer, moved
from effllm.models.saving import copy_processor, save_causal_lm
from effllm.models.text import context_length, text_config
from effllm.models.vision_language.flops import TextView
from effllm.models.vision_language.text import text_shape
from effllm.results.data import InstructionsSummary
from effllm.results.training import EncodedCounts, EncodedData, FinetuningQuality, LossPoint
from effllm.runtime.artifact import write_text
from effllm.runtime.stage import Job, main
from effllm.training.adapters import (
    adapter_bytes,
    beside_adapter,
    load_adapter,
    save_adapter,
    why_null,
    write_start,
)
from effllm.training.answer_loss import AnswerLoss, answer_loss
from effllm.training.consumed import Ordered, RecordConsumed, order_digest, rank_file, sample_order
from effllm.training.images import COPIES, ImageInputs, fix_vision, image_figures, image_flops, train_vision_beside
from effllm.training.methods import Method
from effllm.training.methods.method import PreparedModel
from effllm.training.run import Setup, train
from effllm.training.settings import Recipe
from effllm.training.suites import FinetuningRun

_LOSSES = (
    "held_out_loss",
    "held_out_loss_before",
    "held_out_loss_before_stderr",
    "held_out_loss_stderr",
    "held_out_samples",
    "held_out_tokens",
    "train_loss",
    "train_loss_last",
)
_START = "start"
_SIZES = "sizes.json"
"""Below the scratch, written by whoever trains: the tensors of an adapter that did not start at zero, and counts."""


class Finetuning:
    """What a job is about, each part read when it is asked for: ranks do not score, their launcher does not train."""

    def __init__(self, job: Job):
        self.job = job
        self.run = job.config(FinetuningRun)
        self.base = job.inputs["model"]
        _, self.suite, self.method = job.id.rsplit(".", 2)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's, with the chat template of the suite."""
        tokenizer = load_tokenizer(self.base.directory / "model")
        set_template(tokenizer, self.run.encoding, f"models.{self.base.manifest.id}")
        return tokenizer

    @property
    def base_name(self) -> tuple[str, str | None]:
        """What the base model is called: its repository on the hub and the commit, or its node."""
        manifest = self.base.manifest
        source = manifest.spec["config"]
        if manifest.stage == "model" and source["kind"] == "hub":
            return source["repo"], source["revision"]
        return f"{manifest.stage}/{manifest.id}", None

    @cached_property
    def unscored(self) -> str | None:
        """Why a loss on these instructions means nothing; None where it does."""
        return InstructionsSummary.read(self.job.inputs["instructions"].directory).unscored

    @cached_property
    def images(self) -> ImageInputs | None:
        """The images of the samples; None for text alone."""
        instructions = self.job.inputs["instructions"]
        return ImageInputs(self.base, instructions, self.tokenizer) if ImageInputs.are_in(instructions) else None

    @cached_property
    def training(self) -> Encoded:
        """The training samples as sequences."""
        if self.unscored:
            instructions = self.job.inputs["instructions"]
            prompt_tokens = InstructionsSummary.read(instructions.directory).prompt_tokens
            assert prompt_tokens is not None
            return read_synthetic(instructions.directory, prompt_tokens, self.run.encoding.sequence_length)
        return self._encoded("train", self.run.encoding)

    @cached_property
    def held_out(self) -> Encoded:
        """The held-out samples that are scored, each in a sequence of its own."""
        encoded = self._encoded("held_out", self.run.encoding.model_copy(update={"packing": False}))
        count = min(self.run.held_out_samples or len(encoded.sequences), len(encoded.sequences))
        chosen = np.random.default_rng(self.run.seed).choice(len(encoded.sequences), count, replace=False)
        return Encoded([encoded.sequences[index] for index in sorted(chosen)], encoded.counts)

    @cached_property
    def recipe(self) -> Recipe:
        """What the Trainer is told."""
        try:
            return self.run.recipe(len(self.training.sequences))
        except ValueError as error:
            raise UserError(f"finetuning.{self.suite}: {error}.") from None

    def collate(self, packing: bool, blank: bool = False) -> Collate:
        """Makes batches, padded with the padding token or, where there is none, the end-of-text token.

        `blank`: with blank images.
        """
        if self.unscored:
            # All samples are of one length.
            return Collate(0, packing)
        pad = self.tokenizer.pad_token_id
        images = None if self.images is None else self.images.batches(blank)
        return Collate(self.tokenizer.eos_token_id if pad is None else pad, packing, images)

    def load_base(self) -> PreTrainedModel:
        """The base model on the CPU, in float32 where it is trained itself, otherwise in the type of the arithmetic."""
        dtype = torch.float32 if self.run.trains_whole_model else getattr(torch, self.run.dtype)
        model = load_causal_lm(self.base.directory / "model", dtype=dtype)
        text_config(model.config).use_cache = False
        positions = context_length(model.config)
        if positions and self.run.encoding.sequence_length > positions:
            raise UserError(
                f"finetuning.{self.suite}.encoding.sequence_length: {self.run.encoding.sequence_length} exceeds the "
                f"{positions} positions of {self.base.manifest.id}; lower it."
            )
        return model

    def setup(self) -> Setup[PreTrainedModel | PeftModel]:
        """The model as the method makes it ready, and the samples in the order of training."""
        run, recipe = self.run, self.recipe
        set_seed(run.seed)
        model = self.load_base()
        if run.parallel.strategy == "single" and torch.cuda.is_available():
            # Methods that decompose the weights take minutes on a CPU.
            moved(model, "cuda")
        prepared = run.method.apply(model, f"methods.{self.method}")
        assert isinstance(prepared.model, PreTrainedModel | PeftModel)
        if run.trains_whole_model:
            fix_vision(prepared.model, model.config.model_type, run.vision)
        elif run.vision is not None and run.vision.trained:
            assert isinstance(prepared.model, PeftModel)
            train_vision_beside(prepared.model, model.config.model_type, run.vision)
        for parameter in prepared.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(getattr(torch, run.dtype))
        if prepared.initial_adapter is not None:
            assert isinstance(prepared.model, PeftModel)
            write_start(prepared.initial_adapter | beside_adapter(prepared.model), self.job.scratch / _START)
        write_text(self.job.scratch / _SIZES, json.dumps(_sizes(run.method, prepared)))
        if run.encoding.packing:
            require_separate_samples(prepared.model)
        dataset = SequenceDataset(self.training.sequences)
        order = sample_order(len(dataset), run.samples_per_step, recipe.max_steps, run.seed)
        lengths = np.array([len(sequence) for sequence in dataset.sequences])[order].reshape(recipe.max_steps, -1)
        record = RecordConsumed(dataset, self.job.scratch)

        return Setup(
            recipe=recipe,
            model=prepared.model,
            dataset=Ordered(dataset, order),
            collate=self.collate(run.encoding.packing),
            tokens_of_step=lambda step: int(lengths[step].sum()),
            flops_of_step=self._flops_of_step(model, prepared.model, lengths, order.reshape(recipe.max_steps, -1)),
            make_optimizer=lambda model: prepared.optimizer(model, recipe.optimizer),
            shuffle=False,
            take=record.take,
            callbacks=(record,),
            forward_options={"output_router_logits": True} if has_balancing_loss(model) else {},
        )

    def score(self, model: nn.Module, when: str, blank: bool = False) -> AnswerLoss:
        """Held-out loss of the model, on the first device; with `blank` images none of its samples shows anything."""
        return answer_loss(
            model.to("cuda" if torch.cuda.is_available() else "cpu"),
            self.held_out.sequences,
            self.collate(packing=False, blank=blank),
            self.run.micro_batch_size,
            self.run.dtype,
            f"{self.job.id}, held-out loss {when}",
        )

    def _encoded(self, split: str, encoding: Any) -> Encoded:
        samples = read_samples(self.job.inputs["instructions"].directory, split)
        marks = None if self.images is None else self.images.marks
        return encode(samples, self.tokenizer, encoding, f"{split} samples of {self.job.id}", marks)

    def _flops_of_step(
        self, bare: PreTrainedModel, model: PreTrainedModel | PeftModel, lengths: np.ndarray, order: np.ndarray
    ) -> Any:
        """Model FLOPs; None without formula, and where samples share sequences but do not see each other.

        `bare` is the model as the method has changed it, without peft's own around it.
        """
        asked: Any = model
        if (shape := text_shape(bare.config)) is not None:
            asked = TextView(model, shape)
        if self.run.encoding.packing or not costs.has_formulas(asked.config):
            return None
        of_length = {length: self.run.method.sequence_flops(asked, int(length)) for length in np.unique(lengths)}
        of_passes = self.run.method.pass_flops(model) * self.run.samples_per_step // self.run.micro_batch_size
        of_images = np.zeros(len(self.training.sequences), dtype=np.int64)
        if self.images is not None:
            of_images = image_flops(self.images.marks, bare, self.run.vision, self.training.sequences)

        def flops(step: int) -> int:
            of_text = sum(of_length[length] for length in lengths[step])
            return of_text + of_passes + int(of_images[order[step]].sum())

        return flops


def build(job: Job) -> None:
    """Train, or go on from the last complete checkpoint, score the model before and after, and write what was learned.

    The base model is scored last: before the ranks start, this process must not touch their devices.
    """
    task = Finetuning(job)
    model, curve = train(job, task.recipe, lambda _: task.setup(), load)
    after = None if task.unscored else task.score(model, "after")
    blank = None if task.images is None else task.score(model, "after, without images", blank=True)
    adapter = _save(task, model)
    del model
    gc.collect()
    before = None if task.unscored else task.score(task.load_base(), "before")
    if before and after:
        pq.write_table(_by_sample(before, after, blank), job.records / "held_out.parquet")
    consumed = job.records / "consumed.jsonl"
    ConsumedSamples.merge([rank_file(job.scratch, rank) for rank in range(task.run.parallel.world_size)], consumed)
    steps = ConsumedSamples.read(consumed)
    recipe = task.recipe
    figures = {
        **json.loads((job.scratch / _SIZES).read_text()),
        **_losses(before, after, curve.curve),
        **(image_figures(after, blank) if after and blank else {}),
        "adapter_bytes": None if adapter is None else adapter_bytes(adapter),
        "data": EncodedData(
            train=EncodedCounts(**task.training.counts),
            held_out=None if task.unscored else EncodedCounts(**task.held_out.counts),
        ),
        "learning_rate": task.run.learning_rate,
        "micro_batch_size": recipe.micro_batch_size,
        "packing": task.run.encoding.packing,
        "sample_order_sha256": order_digest(steps),
        "samples_per_step": recipe.global_batch_size,
        "samples_seen": sum(map(len, steps)),
        "seed": recipe.seed,
        "steps": recipe.max_steps,
    }
    reasons = why_null(figures, "one held-out prompt")
    if figures.get("image_gain_stderr", 0) is None:
        reasons["image_gain_stderr"] = "one held-out image"
    if task.unscored:
        reasons |= dict.fromkeys(_LOSSES, task.unscored)
    job.write(FinetuningQuality(**figures, reasons=reasons))


def setup(job: Job) -> Setup[PreTrainedModel | PeftModel]:
    """What a rank trains."""
    return Finetuning(job).setup()


def load(job: Job, directory: Path) -> PreTrainedModel | PeftModel:
    """What the ranks have saved, over the base model if it is an adapter."""
    task = Finetuning(job)
    if task.run.trains_whole_model:
        return load_causal_lm(directory)
    return load_adapter(task.load_base(), directory)


def has_balancing_loss(model: PreTrainedModel) -> bool:
    """Whether the model's own class adds a loss that balances its experts where the routers' logits are asked for."""
    asks = "output_router_logits" in inspect.signature(type(model).forward).parameters
    return asks and getattr(text_config(model.config), "router_aux_loss_coef", 0) > 0


def _sizes(method: Method, prepared: PreparedModel) -> dict[str, int]:
    """Parameters of the base model and of what is trained; a tensor shared by several modules counts once.

    With them the adapter's rank, and the parameters by which it was chosen, where there is one.
    """
    named = list(prepared.model.named_parameters())
    sizes = {
        "parameters": sum(p.numel() for name, p in named if not (method.is_added(name) or COPIES in name)),
        "parameters_trainable": sum(p.numel() for _, p in named if p.requires_grad),
    }
    chosen = {"adapter_rank": prepared.rank, "parameters_matched": prepared.parameters_matched}
    return sizes | {key: value for key, value in chosen.items() if value is not None}


def _losses(before: AnswerLoss | None, after: AnswerLoss | None, curve: Sequence[LossPoint]) -> dict[str, Any]:
    """What was learned, by held-out samples and in training; None where nothing was scored."""
    if before is None or after is None:
        return dict.fromkeys(_LOSSES)
    values = (
        after.loss,
        before.loss,
        before.loss_stderr,
        after.loss_stderr,
        after.samples,
        after.tokens,
        statistics.fmean(point.loss for point in curve) if curve else None,
        curve[-1].loss if curve else None,
    )
    return dict(zip(_LOSSES, values, strict=True))


def _by_sample(before: AnswerLoss, after: AnswerLoss, blank: AnswerLoss | None) -> pa.Table:
    """Columns sample (id), tokens (of the answers), and nll of them in nats before and after the training.

    With images, nll_blank too: after it, with blank ones.
    """
    ids, nll_before, tokens = map(list, zip(*before.by_sample, strict=True))
    nll = [nll for _, nll, _ in after.by_sample]
    columns = {"sample": ids, "tokens": tokens, "nll_before": nll_before, "nll": nll}
    return pa.table(columns | ({"nll_blank": [nll for _, nll, _ in blank.by_sample]} if blank else {}))


def _save(task: Finetuning, model: PreTrainedModel | PeftModel) -> Path | None:
    """Keep what was trained; the directory of the adapter, if it is one."""
    output = task.job.output
    if task.unscored:
        if task.run.trains_whole_model:
            return None
        # Its size is a figure of the method, its weights are worth nothing.
        output = task.job.scratch / "discarded"
    if not isinstance(model, PeftModel):
        text_config(model.config).use_cache = True
        # In the type that the base model was published in, which merged adapters have too.
        published = AutoConfig.from_pretrained(task.base.directory / "model", trust_remote_code=False).dtype
        save_causal_lm(moved(model, published or torch.float32), output / "model")
        task.tokenizer.save_pretrained(output / "model")
        copy_processor(task.base.directory / "model", output / "model")
        return None
    start = task.job.scratch / _START
    save_adapter(model, output / "adapter", *task.base_name, start=start if start.exists() else None)
    if not task.unscored:
        task.tokenizer.save_pretrained(output / "adapter")
    return output / "adapter"


if __name__ == "__main__":
    from effllm.stages.finetune import FinetuneStage

    main(FinetuneStage(), build)
