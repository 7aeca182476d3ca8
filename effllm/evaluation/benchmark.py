"""Stage `benchmark`: one benchmark as an artifact that needs nothing but lm-eval to be run.

    python -m effllm.evaluation.benchmark --spec spec.json [--input corpus=manifest.json] --output DIR

The payload is the same in form for items made from held-out text and for tasks of the harness:

    benchmark.json            what the benchmark is and how it is scored (`effllm.results.benchmark`)
    data/<task>/<split>.parquet   its rows
    nltk_data/                what tasks that judge by nltk need of its data
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.evaluation import held_out
from effllm.fields import Section
from effllm.results import benchmark as results
from effllm.results.evaluation import Kind
from effllm.runtime.artifact import Artifact
from effllm.runtime.stage import Job, main
from effllm.study.code_tasks import HumanEvalBenchmark
from effllm.study.evaluation import Benchmark, HarnessBenchmark, HeldOutBenchmark
from effllm.study.math_tasks import HardMathBenchmark

UNIFORM_BITS_PER_BYTE = 8.0
NEXT_WORD_TOKENS = 16


class Config(Section):
    """This stage's slice of the study."""

    benchmark: Benchmark


def build(job: Job) -> None:
    """Write the rows and the description of the benchmark; `UserError` for what the text or the hub cannot give."""
    settings = job.config(Config).benchmark
    if isinstance(settings, HeldOutBenchmark):
        made = _held_out(job, settings)
    else:
        from effllm.evaluation.rehearsal import rehearse

        if isinstance(settings, HarnessBenchmark):
            made = _harness(job, settings)
        elif isinstance(settings, HumanEvalBenchmark):
            made = _human_eval(job, settings)
        else:
            made = _hard_math(job, settings)
        folder = job.scratch / "rehearsal"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rehearse(made, job.output, folder)
    job.write(made)


def _held_out(job: Job, settings: HeldOutBenchmark) -> results.Benchmark:
    corpus = job.inputs["corpus"]
    task, count, seed = settings.task, settings.items, settings.seed
    rows = _rows_of(corpus, task, count, seed)
    chance, meaning = _chance(task, rows)
    name = f"held_out_{task}"
    config = _CONFIGS[task]
    file = f"data/{name}/test.parquet"
    _write_rows(rows, job.output / file)
    metric = config["metric_list"][0]
    return results.Benchmark(
        kind="held_out",
        task=name,
        metric=metric["metric"],
        higher_is_better=metric["higher_is_better"],
        role="perplexity" if task == "perplexity" else "accuracy",
        chance_level=chance,
        chance_meaning=meaning,
        items=len(rows),
        limit=None,
        tasks=[
            results.BenchmarkTask(
                name=name,
                output_type=config["output_type"],
                items=len(rows),
                data_files={"test": file},
                include=None,
                config=config,
            )
        ],
        cluster="cluster",
        groups={},
        source={"corpus": corpus.manifest.id, "seed": seed},
    )


def _rows_of(corpus: Artifact, task: str, count: int, seed: int) -> list[held_out.Item]:
    if task == "perplexity":
        documents = ((id, text) for id, text in _documents(corpus, "held_out", ["id", "text"]))
        return held_out.document_items(documents, count, seed)
    if task == "next_word":
        return held_out.next_word_items(_texts(corpus, "held_out"), _texts(corpus, "train"), count, seed)
    return held_out.choice_items(task, _texts(corpus, "held_out"), lambda: _texts(corpus, "train"), count, seed)


def _chance(task: str, rows: list[held_out.Item]) -> tuple[float, str]:
    if task == "perplexity":
        return UNIFORM_BITS_PER_BYTE, "bits per byte of a model to which all 256 bytes are alike"
    if task == "next_word":
        return held_out.most_common_answer_share(rows), "score of always answering the most common last word"
    choices = held_out.CHOICES[task]
    return 1 / choices, f"expected score of a random choice among {choices}"


def _harness(job: Job, settings: HarnessBenchmark) -> results.Benchmark:
    from importlib.metadata import version

    from effllm.evaluation.harness_data import PERPLEXITIES, fetch, resolve
    from effllm.evaluation.run_time_needs import NLTK_DATA, require_libraries, write_nltk_data

    resolved = resolve(settings.task)
    dataset = resolved.dataset_path()
    higher_is_better = resolved.higher_is_better(settings.metric)
    tasks: list[results.BenchmarkTask] = []
    packages: dict[str, str] = {}
    for leaf in resolved.leaves:
        require_libraries(leaf)
        packages |= write_nltk_data(leaf, job.output / NLTK_DATA)
    for leaf in resolved.leaves:
        splits = fetch(leaf, settings.revision, job.output / "data" / leaf.name, job.scratch / "hub")
        rows = splits[leaf.evaluated_split()][1]
        tasks.append(
            results.BenchmarkTask(
                name=leaf.name,
                output_type=leaf.config.get("output_type", "generate_until"),
                items=min(rows, settings.limit or rows),
                data_files={split: file.relative_to(job.output).as_posix() for split, (file, _) in splits.items()},
                include=leaf.file,
                config={},
            )
        )
    return results.Benchmark(
        kind="harness",
        task=settings.task,
        metric=settings.metric,
        higher_is_better=higher_is_better,
        role="perplexity" if settings.metric.partition(",")[0] in PERPLEXITIES else "accuracy",
        chance_level=settings.chance_level,
        chance_meaning="expected score of guessing, as the study states it",
        items=sum(task.items for task in tasks),
        limit=settings.limit,
        tasks=tasks,
        cluster=None,
        groups=dict(resolved.groups),
        source={"dataset": dataset, "revision": settings.revision, "lm_eval": version("lm_eval"), **packages},
    )


def _human_eval(job: Job, settings: HumanEvalBenchmark) -> results.Benchmark:
    from effllm.evaluation.code.requirement import require_isolation
    from effllm.evaluation.human_eval import TASK, metric, problems, task_config

    require_isolation(settings.isolation, "benchmark")
    rows, source = problems(settings, _files(job), job.scratch / "hub")
    chance = "a program that is right by chance"
    return _judged(job, "human_eval", TASK, metric(settings), rows, task_config(settings), chance, source)


def _hard_math(job: Job, settings: HardMathBenchmark) -> results.Benchmark:
    from effllm.evaluation.asymptotics.problems import METRIC, TASK, problems, task_config

    rows, source = problems(settings, _files(job), job.scratch)
    chance = "a formula that is right by chance"
    return _judged(job, "hard_math", TASK, METRIC, rows, task_config(settings), chance, source)


def _judged(
    job: Job,
    kind: Kind,
    task: str,
    metric: str,
    rows: list[dict[str, Any]],
    config: dict[str, Any],
    chance_meaning: str,
    source: dict[str, Any],
) -> results.Benchmark:
    """A task of answers that are generated, and judged by this package."""
    file = f"data/{task}/test.parquet"
    _write_rows(rows, job.output / file)
    return results.Benchmark(
        kind=kind,
        task=task,
        metric=metric,
        higher_is_better=True,
        role="accuracy",
        chance_level=0.0,
        chance_meaning=chance_meaning,
        items=len(rows),
        limit=None,
        tasks=[
            results.BenchmarkTask(
                name=task,
                output_type="generate_until",
                items=len(rows),
                data_files={"test": file},
                include=None,
                config=config,
            )
        ],
        cluster=None,
        groups={},
        source=source,
    )


def _files(job: Job) -> list[Path]:
    return [job.files[f"files[{number}]"] for number in range(len(job.files))]


def _texts(corpus: Artifact, part: str) -> Iterator[str]:
    return (row[0] for row in _documents(corpus, part, ["text"]))


def _documents(corpus: Artifact, part: str, columns: list[str]) -> Iterator[tuple[str, ...]]:
    """Rows of `columns` of the corpus's part ("held_out" or "train"), a batch in memory at a time."""
    import pyarrow.parquet as parquet
    from pyarrow import ArrowInvalid

    for file in sorted(corpus.directory.glob(f"{part}-*.parquet")):
        try:
            for batch in parquet.ParquetFile(file).iter_batches(columns=columns):
                yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
        except (ArrowInvalid, KeyError) as error:
            raise UserError(
                f"{file} is no parquet file with the columns {', '.join(columns)} ({error}); delete "
                f"{corpus.directory} and run again."
            ) from error


def _write_rows(rows: list[Any], file: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    file.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def _metric(name: str, higher_is_better: bool, **options: Any) -> dict[str, Any]:
    return {"metric": name, "higher_is_better": higher_is_better, **options}


# A sentence is scored whole, without a prompt: which of the texts does the model find more likely? `acc` compares
# log-likelihoods, `acc_norm` log-likelihoods per byte; they differ only where the choices differ in length.
_CHOICE = {
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "num_fewshot": 0,
    "metric_list": [_metric("acc", True, aggregation="mean"), _metric("acc_norm", True, aggregation="mean")],
    "metadata": {"version": 1},
}
_CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(held_out.CHOICES, _CHOICE),
    "next_word": {
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "context",
        "doc_to_target": "answer",
        "num_fewshot": 0,
        # A line break is no stop: in wrapped text it stands before a word as a space does.
        "generation_kwargs": {"until": [".", "!", "?"], "do_sample": False, "max_gen_toks": NEXT_WORD_TOKENS},
        "filter_list": [
            {
                "name": "first_word",
                "filter": [
                    {"function": "regex", "regex_pattern": r"^\s*(\S+)", "fallback": ""},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [_metric("exact_match", True, aggregation="mean", ignore_punctuation=True)],
        "metadata": {"version": 1},
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "text",
        "num_fewshot": 0,
        "metric_list": [
            _metric("bits_per_byte", False, aggregation="bits_per_byte"),
            _metric("byte_perplexity", False, aggregation="weighted_perplexity"),
            _metric("word_perplexity", False, aggregation="weighted_perplexity"),
        ],
        "metadata": {"version": 1},
    },
}


if __name__ == "__main__":
    from effllm.stages.benchmark import BenchmarkStage

    main(BenchmarkStage(), build)
