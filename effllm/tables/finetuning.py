"""Tables 7, 8 and 12: methods of fine-tuning, one row per base model and method of a suite."""

from collections.abc import Mapping
from typing import Any

from effllm.intervals import Z95
from effllm.results.training import EncodedCounts
from effllm.tables.artifacts import read_results
from effllm.tables.cells import Cell, Row
from effllm.tables.runs import finish, ratio, set_conditions, set_efficiency
from effllm.tables.training import Training
from effllm.telemetry.metrics import sample_throughput

SETTINGS = ("dtype", "activation_checkpointing", "deterministic")


class FinetuningResult(Training):
    """One method on one base model."""

    @property
    def samples_per_step(self) -> int:
        """Samples per optimizer step, over all ranks."""
        return self.recipe["samples_per_step"]

    def total_steps(self) -> Cell:
        """Optimizer steps of the whole run: a suite may give epochs instead."""
        return self.quality("steps")

    def adapter_rank(self) -> Cell:
        """The adapter's rank: the study's, or the one that was chosen by a number of parameters."""
        if "rank" not in self.recipe["method"]:
            return None, "the method has no rank"
        given = self.recipe["method"]["rank"]
        return (given, None) if given is not None else self.quality("adapter_rank")

    def parameters_matched(self) -> Cell:
        """Trained parameters by which the rank was chosen."""
        if self.recipe["method"].get("match_parameters") is None:
            return None, "the study gives the rank, or there is none"
        return self.quality("parameters_matched")

    def samples(self) -> Cell:
        """Samples of the measured steps, over all ranks."""
        steps, why = self.steps()
        return (steps * self.samples_per_step if steps is not None else None), why

    def metered_samples(self) -> Cell:
        """Samples that the measured energy paid for."""
        steps, why = self.metered_steps()
        return (steps * self.samples_per_step if steps is not None else None), why

    def sample_throughput(self) -> Cell:
        """ST in samples per parameter and s; parameters are the model's, trained or not, adapters left out."""
        samples, why = self.samples()
        parameters, why_parameters = self.quality("parameters")
        if samples is None or parameters is None:
            return None, why or why_parameters
        return sample_throughput([samples], parameters, [self.seconds()[0]]), None

    def image_gain(self, side: float = 0.0) -> Cell:
        """What the images take off the held-out loss; `side` standard errors beside it an end of its interval."""
        gain, why = self.quality("image_gain")
        error, why_error = self.quality("image_gain_stderr") if side else (0.0, None)
        return (gain + side * error, None) if gain is not None and error is not None else (None, why or why_error)

    def counts(self, split: str) -> tuple[EncodedCounts | None, str | None]:
        """What became of the samples of a split."""
        data, why = self.quality("data")
        return (None, why) if data is None else (getattr(data, split), None)


def finetuning_table(
    spec: Mapping[str, Any], inputs: Mapping[str, list[str]], has_images: bool = False
) -> list[dict[str, Any]]:
    """The rows of a table of fine-tuning methods.

    `spec` is `Graph.table_spec` of Table 7, 8 or 12; `inputs` are paths of manifests by stage. The paper's columns come
    first, in its order; docs/tables.md says what each column is. With `has_images` what they are worth stands behind
    the loss.
    """
    results = read_results("finetune", inputs["finetune"])
    suite = spec["config"]
    rows = []
    for model in suite["models"]:
        for method in suite["methods"]:
            row = Row()
            row.set("model", spec["model_labels"][model])
            row.set("method", spec["method_labels"][method])
            rows.append(_fill(row, FinetuningResult(results[f"{model}.{suite['suite']}.{method}"]), has_images))
    return rows


def _fill(row: Row, run: FinetuningResult, has_images: bool) -> dict[str, Any]:
    set_costs(row, run)
    set_learned(row, run)
    if has_images:
        _set_images(row, run)
    set_trained(row, run)
    if not has_images:
        # Samples with images are never packed.
        row.set("packing", run.recipe["encoding"]["packing"])
    row.set("micro_batch", run.recipe["micro_batch_size"])
    row.set("context", run.recipe["encoding"]["sequence_length"])
    row.set("steps", *run.total_steps())
    row.set("samples_seen", *run.quality("samples_seen"))
    set_time_and_energy(row, run)
    set_conditions(row, [run], SETTINGS)
    return finish(row, [run])


def set_costs(row: Row, run: FinetuningResult) -> None:
    """The paper's columns."""
    row.set("loss", *run.quality("train_loss"))
    row.set("AMU_GB", *run.window.memory("avg"))
    row.set("PCU", *run.window.figure("util_nvml"))
    row.set("AL_s_per_iter", *run.efficiency("latency_s_per_iteration"))
    row.set("ST_samples_per_param_s", *run.sample_throughput())
    row.set("AEC_W", *run.window.figure("power_avg_w"))


def set_trained(row: Row, run: FinetuningResult) -> None:
    """How much of the model a step trains, and on how many samples."""
    row.set("parameters_total", *run.quality("parameters"))
    row.set("parameters_trainable", *run.quality("parameters_trainable"))
    row.set("adapter_rank", *run.adapter_rank())
    row.set("parameters_matched", *run.parameters_matched())
    row.set("adapter_bytes", *run.quality("adapter_bytes"))
    row.set("samples_per_step", run.samples_per_step)


def set_time_and_energy(row: Row, run: FinetuningResult) -> None:
    """What a sample and the whole run cost, and which run it is."""
    runs = [run]
    row.set("AL_s_per_sample", *ratio(runs, Training.seconds, FinetuningResult.samples))
    row.set("tokens_per_s", *run.efficiency("tokens_per_s"))
    set_efficiency(row, runs)
    energy = ratio(runs, lambda run: run.window.figure("energy_j"), FinetuningResult.metered_samples)
    row.set("energy_J_per_sample", *energy)
    row.set("GPU_hours", *run.gpu_hours())
    row.set("training_hours", *run.hours())
    row.set("run", run.id)
    row.set("seed", run.recipe["seed"])
    row.set("learning_rate", run.recipe["learning_rate"])


def _set_images(row: Row, run: FinetuningResult) -> None:
    """Whether the model looks: its loss with blank images, by the same samples, and what became of the samples."""
    row.set("held_out_loss_blank", *run.quality("held_out_loss_blank"))
    row.set("image_gain", *run.image_gain())
    low, why = run.image_gain(-Z95)
    row.set("image_gain_low", low, why)
    row.set("image_gain_high", *run.image_gain(Z95))
    row.set("looks", None if low is None else "yes" if low > 0 else "no", why)
    vision = run.recipe.get("vision") or {}
    row.set("vision_trained", " ".join(part for part, state in sorted(vision.items()) if state == "trained") or "none")
    (train, why), (held_out, why_held_out) = (run.counts(split) for split in ("train", "held_out"))
    tokens = None if train is None or train.image_tokens is None else train.image_tokens / train.samples
    row.set("image_tokens_per_sample", tokens, why)
    row.set("samples_train", None if train is None else train.samples, why)
    row.set("samples_held_out", None if held_out is None else held_out.samples, why_held_out)
    row.set("samples_dropped", None if train is None else sum(train.dropped.values()), why)


def set_learned(row: Row, run: FinetuningResult) -> None:
    """The held-out loss with its interval, before the training too."""
    loss, why = run.quality("held_out_loss")
    error, why_error = run.quality("held_out_loss_stderr")
    row.set("held_out_loss", loss, why)
    for column, side in (("held_out_loss_low", -Z95), ("held_out_loss_high", Z95)):
        edge = loss + side * error if loss is not None and error is not None else None
        row.set(column, edge, why or why_error)
    row.set("held_out_loss_before", *run.quality("held_out_loss_before"))
    row.set("loss_last", *run.quality("train_loss_last"))
