"""training.json, records/efficiency.json and records/loss_curve.json of pretraining and fine-tuning."""

from typing import ClassVar

from pydantic import Field

from effllm.results.base import Figures, Interval, Number, Part, ResultFile
from effllm.results.telemetry import DeviceInfo, TelemetrySummary


class PretrainingQuality(Figures, ResultFile):
    """What a pretraining run has learned, and the size of its model."""

    FILE: ClassVar[str] = "training.json"

    held_out_loss: float | None = Field(description="Negative log-likelihood in nats per held-out token.")
    held_out_loss_stderr: float | None = Field(description="Its standard error, documents as draws.")
    held_out_perplexity: float | None = Field(description="exp of the loss.")
    held_out_bits_per_byte: float | None = Field(description="The same loss per byte of UTF-8 text.")
    held_out_tokens: int | None = Field(description="Tokens that were scored.")
    held_out_documents: int | None = Field(default=None, description="Documents that they are of.")
    parameters: int = Field(description="All parameters.")
    parameters_active: int = Field(description="Those that a token passes through.")
    parameters_without_embeddings: int = Field(description="All but the input table.")
    cache_bytes_per_token: Number = Field(description="Bytes of cache per token in bfloat16 at the run's length.")
    seed: int = Field(description="Of weights and data order.")
    tokens_seen: int = Field(description="Tokens of all steps.")
    train_sequences: int = Field(description="Sequences of the training part.")


class EncodedCounts(Part):
    """What became of the samples of a split when they were encoded."""

    samples: int = Field(description="Samples that are used.")
    sequences: int = Field(description="Sequences that hold them.")
    tokens: int = Field(description="Their tokens.")
    answer_tokens: int = Field(description="Of those, the ones that the loss counts.")
    truncated: int = Field(description="Samples that were cut.")
    dropped: dict[str, int] = Field(description="Samples that were left out, by reason.")
    not_learned: dict[str, int] = Field(description="Answer tokens that no label covers, by reason.")
    other_prompts: int = Field(description="Answers after another text than their prompt.")
    image_tokens: int | None = Field(default=None, description="Tokens of images; left out for text alone.")


class EncodedData(Part):
    """Counts by split."""

    train: EncodedCounts = Field(description="The training samples.")
    held_out: EncodedCounts | None = Field(description="The held-out ones; null where nothing is scored.")


class FinetuningQuality(Figures, ResultFile):
    """What a fine-tuning has learned, and what was trained."""

    FILE: ClassVar[str] = "training.json"

    held_out_loss: float | None = Field(description="Negative log-likelihood in nats per held-out answer token.")
    held_out_loss_stderr: float | None = Field(description="Its standard error, prompts as draws.")
    held_out_loss_before: float | None = Field(description="The base model's.")
    held_out_loss_before_stderr: float | None = Field(description="Its standard error.")
    held_out_samples: int | None = Field(description="Samples that were scored.")
    held_out_tokens: int | None = Field(description="Answer tokens that were scored.")
    held_out_loss_blank: float | None = Field(
        default=None, description="With a grey image in the place of each; left out for text alone."
    )
    image_gain: float | None = Field(
        default=None, description="What the images take off the loss: that with grey ones less that with the true ones."
    )
    image_gain_stderr: float | None = Field(default=None, description="Its standard error, images as draws.")
    train_loss: float | None = Field(description="Mean of the loss curve.")
    train_loss_last: float | None = Field(description="Its last point.")
    parameters: int = Field(description="Of the base model.")
    parameters_trainable: int = Field(description="Of what is trained.")
    adapter_rank: int | None = Field(default=None, description="Rank of the adapter; absent where there is none.")
    parameters_matched: int | None = Field(
        default=None, description="Trained parameters by which the rank was chosen; absent where the study gives it."
    )
    adapter_bytes: int | None = Field(description="Tensors of the adapter on disk.")
    data: EncodedData = Field(description="What became of the samples.")
    learning_rate: float = Field(description="The highest.")
    micro_batch_size: int = Field(description="Sequences per device and forward pass.")
    packing: bool = Field(description="Whether sequences hold several samples.")
    sample_order_sha256: str = Field(description="Digest of the ids of all samples in their order.")
    samples_per_step: int = Field(description="Over all ranks.")
    samples_seen: int = Field(description="Over all steps.")
    seed: int = Field(description="Of adapters, dropout and order.")
    steps: int = Field(description="Optimizer steps of the whole run.")


class TuningQuality(Figures, ResultFile):
    """What a fine-tuning of a model of images or videos has learned, and what was trained."""

    FILE: ClassVar[str] = "training.json"

    held_out_loss: float = Field(
        description="Mean loss of held-out samples over the times at which all runs score them, by the same noise."
    )
    held_out_loss_stderr: float | None = Field(description="Its standard error, samples as draws.")
    held_out_loss_before: float = Field(description="The base model's.")
    held_out_loss_before_stderr: float | None = Field(description="Its standard error.")
    held_out_loss_by_time: dict[str, float] = Field(description="The loss at each of the times.")
    held_out_loss_before_by_time: dict[str, float] = Field(description="The base model's.")
    held_out_samples: int = Field(description="Samples that were scored.")
    train_loss: float | None = Field(description="Mean of the loss curve.")
    train_loss_last: float | None = Field(description="Its last point.")
    parameters: int = Field(description="Of the base model's transformer.")
    parameters_trainable: int = Field(description="Of what is trained.")
    adapter_rank: int | None = Field(default=None, description="Rank of the adapter; absent where there is none.")
    parameters_matched: int | None = Field(
        default=None, description="Trained parameters by which the rank was chosen; absent where the study gives it."
    )
    adapter_bytes: int | None = Field(description="Tensors of the adapter on disk.")
    learning_rate: float = Field(description="The highest.")
    micro_batch_size: int = Field(description="Samples per device and forward pass.")
    sample_order_sha256: str = Field(description="Digest of the names of all samples in their order.")
    samples_per_step: int = Field(description="Over all ranks.")
    samples_seen: int = Field(description="Over all steps.")
    train_samples: int = Field(description="Samples of the training part.")
    seed: int = Field(description="Of adapters, order and what is drawn.")
    steps: int = Field(description="Optimizer steps of the whole run.")


class DiffusionQuality(Figures, ResultFile):
    """What a run of diffusion has learned, and the size of its model."""

    FILE: ClassVar[str] = "training.json"

    held_out_loss: float | None = Field(
        description="Mean loss of held-out images, labels given, over draws that all runs share."
    )
    held_out_loss_stderr: float | None = Field(description="Its standard error, images as draws.")
    held_out_images: int | None = Field(description="Images that were scored.")
    images_seen: int = Field(description="Images of all steps.")
    parameters: int = Field(description="All parameters.")
    parameters_active: int = Field(description="Those that a patch passes through.")
    seed: int = Field(description="Of weights, order and draws.")
    tokens_per_image: int = Field(description="Patches of an image.")
    train_images: int = Field(description="Images of the training part.")


class RunConditions(Part):
    """What a training ran on."""

    device: DeviceInfo = Field(description="The first rank's.")
    kernels: dict[str, dict[str, str | None]] = Field(
        default_factory=dict, description="By module, which kernel ran, and why it was not the fused one."
    )
    resumed_at_step: int = Field(description="Steps of earlier processes, which were not measured.")
    strategy: str = Field(description="How the run was parallel.")
    threads: int = Field(description="Threads of torch.")
    world_size: int = Field(description="Ranks.")


class Efficiency(RunConditions, Figures, ResultFile):
    """What the steady steps of a training cost: without the first ones of a process and without saves."""

    FILE: ClassVar[str] = "records/efficiency.json"

    steps: int = Field(description="Optimizer steps that were measured.")
    latency_s_per_iteration: float | None = Field(description="AL: wall time per optimizer step in s.")
    latency_s_per_iteration_ci95: Interval | None = Field(description="Its 95 % interval over blocks of steps.")
    tokens: int | None = Field(description="Tokens of all ranks in these steps.")
    tokens_per_s: float | None = Field(description="The same over their time.")
    flops: Number | None = Field(description="Model FLOPs of all ranks in these steps.")
    mfu: float | None = Field(description="FLOPs over time and the dense peak of all devices, a fraction.")
    telemetry: TelemetrySummary | None = Field(description="Of the first rank's device.")


class LossPoint(Part):
    """One entry of the Trainer's log."""

    step: int = Field(description="Optimizer steps so far.")
    loss: float = Field(description="Mean training loss in nats since the last entry.")


class HeldOutPoint(Part):
    """A held-out loss on the way."""

    step: int = Field(description="Optimizer steps so far.")
    tokens_seen: int = Field(description="Tokens of these steps.")
    loss: float = Field(description="Negative log-likelihood in nats per held-out token.")
    tokens: int = Field(description="Held-out tokens that were scored.")


class LossCurve(Part, ResultFile):
    """The losses as the Trainer logged them."""

    FILE: ClassVar[str] = "records/loss_curve.json"

    curve: list[LossPoint] = Field(description="Points of the training loss by step.")
    held_out: list[HeldOutPoint] = Field(
        default=[], description="Points of the held-out loss by step; absent where `held_out_curve` asks for none."
    )
