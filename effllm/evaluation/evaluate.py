"""Stage `evaluate`: one model on one benchmark, by lm-evaluation-harness and offline, with what it cost.

    python -m effllm.evaluation.evaluate --spec spec.json --input model=... --input benchmark=... --output DIR

The payload is `evaluation.json` and, where items name the text that they were made from, `clusters.json` with
[sum of the metric, items] by it; with an input `reference` the first says how far the model's next-token distributions
are from that model's; the answers item by item are in `records/samples.jsonl` and the telemetry in
`records/telemetry/`. torch and lm-eval are imported inside functions, so that others import this module at no cost.
"""

import importlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.errors import CellFailure
from effllm.evaluation.chat import harness_options, prepare_template
from effllm.evaluation.placement import scoring_need
from effllm.evaluation.run_time_needs import NLTK_DATA, use_nltk_data
from effllm.evaluation.scores import cluster_scores, summarize
from effllm.evaluation.tasks import load_tasks, write_task_files
from effllm.fields import PositiveInt, Section
from effllm.results.benchmark import Benchmark
from effllm.results.evaluation import ChatRecord, Divergence, Evaluation, EvaluationCost, RequestCost
from effllm.results.quantization import Quantization
from effllm.results.telemetry import TelemetrySummary
from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import Job, main
from effllm.study.evaluation import EvaluationProtocol
from effllm.study.models import ChatPrompts

if TYPE_CHECKING:
    from effllm.evaluation.metered import MeteredLM

WINDOW = "evaluate"
_LONGEST_TARGET = 500


class Config(Section):
    """This stage's slice of the study."""

    protocol: EvaluationProtocol
    chat: ChatPrompts | None = None
    devices: PositiveInt | None = None


def build(job: Job) -> None:
    """Write evaluation.json.

    `CellFailure`: "nan" where the model gives no numbers, "oom" where it does not fit, "unsupported" where its
    context is too short for the task or its weights are random.
    """
    config = job.config(Config)
    protocol, chat = config.protocol, config.chat
    benchmark = Benchmark.read(job.inputs["benchmark"].directory)
    unscored = Quantization.read(job.inputs["model"].directory).unscored
    if unscored:
        raise CellFailure("unsupported", unscored)
    folder = job.scratch / "tasks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_task_files(benchmark, job.inputs["benchmark"].directory, folder)
    with _failures_of_the_cell():
        reference = job.inputs.get("reference")
        lm, devices = load(job.inputs["model"], config, reference)
        use_nltk_data(job.inputs["benchmark"].directory / NLTK_DATA)
        tasks = load_tasks(folder, benchmark.task, protocol.seed)
        require_room(tasks, lm.max_length)
        generates = any(task.output_type == "generate_until" for task in benchmark.tasks)
        lm.warm_up(generates)
        results, seconds, telemetry = _measured(job, lm, tasks, benchmark, config, devices)
    if lm.meter.not_finite:
        total = lm.meter.total().requests
        raise CellFailure("nan", f"{lm.meter.not_finite} of {total} log-likelihoods are not finite numbers")
    scores = summarize(results, benchmark, protocol.bootstrap_iters, protocol.seed)
    if not math.isfinite(scores.score):
        raise CellFailure("nan", f"the score {scores.metric} is {scores.score}")
    clusters = cluster_scores(results, benchmark)
    if clusters is not None:
        job.write(clusters)
    evaluation = Evaluation(
        **dict(scores),
        task=benchmark.task,
        kind=benchmark.kind,
        higher_is_better=benchmark.higher_is_better,
        role=benchmark.role,
        chance_level=benchmark.chance_level,
        chance_meaning=benchmark.chance_meaning,
        limit=benchmark.limit,
        clusters=None if clusters is None else len(clusters.root),
        lm_eval_version=version("lm_eval"),
        transformers_version=version("transformers"),
        seed=protocol.seed,
        max_length=lm.max_length,
        log_probability_dtype="float32",
        ignored_generation_settings=lm.ignored_generation_settings if generates else {},
        cost=_cost(lm, seconds, devices),
        telemetry=telemetry,
    )
    if protocol.divergence_from is not None:
        divergence = _divergence(job, lm, tasks, benchmark, protocol.divergence_from, devices)
        evaluation = evaluation.model_copy(update={"divergence": divergence})
    if chat:
        evaluation = evaluation.model_copy(update={"chat": ChatRecord(**chat.plain(), end_token_ids=lm.end_ids())})
    _write_samples(job.records / "samples.jsonl", results["samples"], benchmark.cluster)
    job.write(evaluation)


def load(model: Artifact, config: Config, reference: Artifact | None = None) -> "tuple[MeteredLM, list[str]]":
    """The model of a `quantize` artifact in its own precision, behind the meter, and the devices that it is on.

    On as many GPUs, if there are any, as it needs; with a `reference`, as both need, which are then there together.
    """
    # The bootstrap of lm-eval would fork this process, with its threads and its CUDA context, once per core.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    # Nothing forks, so prompts can be encoded on all threads of the job.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    # It warns of every prompt that it cuts, one by one; the meter counts them.
    logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
    from effllm.evaluation.metered import MeteredLM
    from effllm.models.loading import load_tokenizer
    from effllm.models.placement import place
    from effllm.quantization.loading import load_quantized
    from effllm.telemetry.busy import warn_if_busy

    path = model.directory / "model"
    weights = [Quantization.read(one.directory).weights.bytes for one in (model, reference) if one]
    try:
        devices = place(scoring_need(sum(weights), path, config.protocol), config.devices)
    except CellFailure:
        # Alone it may fit, and the comparison with the other is then what is missing.
        devices = place(scoring_need(weights[0], path, config.protocol), config.devices)
    for device in devices:
        warn_if_busy(device, model.manifest.id)
    tokenizer = load_tokenizer(path)
    if config.chat:
        prepare_template(tokenizer, model.manifest.id.rpartition(".")[0])
    loaded, _ = load_quantized(model, devices)
    lm = MeteredLM(
        loaded.eval(),
        tokenizer,
        batch_size=config.protocol.batch_size,
        max_length=config.protocol.max_length,
        ends_turns=config.chat is not None,
        shares_prefixes=config.protocol.shares_prefixes,
    )
    return lm, devices


def _divergence(
    job: Job, lm: "MeteredLM", tasks: dict[str, Any], benchmark: Benchmark, reference: str, devices: Sequence[str]
) -> Divergence:
    """The model against the `reference` input, after all that is measured; the sums of each document are a record."""
    from effllm.evaluation.divergence import compare_documents, summarize_divergence, unmeasured, write_sums
    from effllm.quantization.loading import load_quantized

    requests = [request for task in tasks["tasks"].values() for request in task.instances]
    column = benchmark.cluster
    clusters = [request.doc[column] if column else number for number, request in enumerate(requests)]
    try:
        with _failures_of_the_cell():
            other, _ = load_quantized(job.inputs["reference"], devices)
            sums = compare_documents(lm, other.eval(), [request.args[0] for request in requests])
    except CellFailure as failure:
        if failure.status != "oom":
            raise
        return unmeasured(reference, f"both models together do not fit the device ({failure.reason})")
    write_sums(job.records / "divergence.jsonl", sums, clusters)
    with _failures_of_the_cell():
        return summarize_divergence(sums, clusters, reference)


def require_room(tasks: dict[str, Any], max_length: int) -> None:
    """`CellFailure` if a task generates as many tokens as the model's context holds, leaving none for the prompt."""
    for name, task in tasks["tasks"].items():
        wanted = (task.config.generation_kwargs or {}).get("max_gen_toks", 0)
        if wanted >= max_length:
            raise CellFailure(
                "unsupported",
                f"{name} generates up to {wanted} tokens, which leaves no room for a prompt in the {max_length} "
                "tokens of context (the model's limit, or evaluation.max_length)",
            )


def _measured(
    job: Job,
    lm: "MeteredLM",
    tasks: dict[str, Any],
    benchmark: Benchmark,
    config: Config,
    devices: Sequence[str],
) -> tuple[dict[str, Any], float, TelemetrySummary]:
    """Run the requests; (lm-eval's results, wall seconds, telemetry), prompts' making and scoring included."""
    from lm_eval.evaluator import evaluate

    from effllm.telemetry import Telemetry

    protocol, directory = config.protocol, job.records / "telemetry"
    with Telemetry(directory=directory, device=devices, period_s=protocol.sample_period_s) as telemetry:
        telemetry.begin_window(WINDOW)
        start = time.perf_counter()
        results = evaluate(
            lm=lm,
            task_dict=tasks,
            limit=benchmark.limit,
            bootstrap_iters=protocol.bootstrap_iters,
            log_samples=True,
            **harness_options(config.chat),
        )
        seconds = time.perf_counter() - start
        telemetry.end_window(WINDOW)
    return results, seconds, telemetry.summary(WINDOW)


@contextmanager
def _failures_of_the_cell() -> Iterator[None]:
    """Turn what the model's size or numbers cause into `CellFailure`; everything else stays a defect."""
    try:
        yield
    except FloatingPointError as error:
        raise CellFailure("nan", str(error)) from error
    except (RuntimeError, MemoryError) as error:
        from effllm.evaluation.batches import is_out_of_memory

        if is_out_of_memory(error):
            raise CellFailure("oom", "out of memory: " + str(error).partition("\n")[0]) from error
        raise


def _cost(lm: "MeteredLM", seconds: float, devices: Sequence[str]) -> EvaluationCost:
    """What the requests cost.

    `model_seconds` is time inside the model's calls, `wall_seconds` adds the making of prompts, tokenization and
    scoring; `latency_mean_ms` is model seconds per request, in ms, at this batch size.
    """
    import torch

    total = lm.meter.total()
    return EvaluationCost(
        **asdict(total),
        latency_mean_ms=1000 * total.model_seconds / total.requests,
        latency_definition="1000 * model_seconds / requests",
        wall_seconds=seconds,
        by_kind={kind: RequestCost(**asdict(cost)) for kind, cost in lm.meter.kinds.items()},
        batch_size=lm.meter.batch_size or lm.batch_size,
        batch_halvings=lm.meter.batch_halvings,
        threads=torch.get_num_threads(),
        device=",".join(devices),
    )


def _write_samples(path: Path, samples: dict[str, list[dict[str, Any]]], cluster: str | None) -> None:
    """One line per item and filter: its target, the answers, what each metric made of them, and its cluster if named.

    Prompts are left out, and so are targets that are whole documents: `doc_hash` identifies them.
    """
    with open(path, "w") as stream:
        for task, items in samples.items():
            for item in items:
                row = {
                    "task": task,
                    **{key: item[key] for key in ("doc_id", "doc_hash", "filter")},
                    **({"cluster": item["doc"][cluster]} if cluster else {}),
                    "target": None if len(str(item["target"])) > _LONGEST_TARGET else item["target"],
                    "answers": item["filtered_resps"],
                    **{metric: item[metric] for metric in item["metrics"]},
                }
                stream.write(json.dumps(row, default=_plain, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    """numpy scalars as numbers, and what a task returns besides them as text."""
    return value.item() if hasattr(value, "item") else str(value)


if __name__ == "__main__":
    # What a build imports, while the collector rests.
    for library in ("effllm.evaluation.metered", "effllm.models.loading", "lm_eval.evaluator", "lm_eval.tasks"):
        importlib.import_module(library)
    from effllm.stages.evaluate import EvaluateStage

    main(EvaluateStage(), build)
