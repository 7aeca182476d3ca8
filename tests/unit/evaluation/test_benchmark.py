"""The benchmark artifact: its description, its rows, and what it refuses."""

import pytest
from conftest import held_out_benchmark, publish_artifact, rows_of

from effllm.errors import UserError
from effllm.evaluation.tasks import write_task_files
from effllm.results.benchmark import Benchmark, BenchmarkTask

CHANCE = {"word_order": 0.25, "adjacent_swap": 0.5, "word_substitution": 0.5, "perplexity": 8.0}


@pytest.mark.parametrize("task", [*CHANCE, "next_word"])
def test_a_benchmark_says_what_it_is_and_what_guessing_scores(root, corpus, task):
    benchmark = held_out_benchmark(root, corpus, task, 5, seed=4)
    described, rows = benchmark.json("benchmark.json"), rows_of(benchmark)
    assert described["kind"] == "held_out"
    assert described["items"] == len(rows) == 5
    assert described["task"] == described["tasks"][0]["name"] == f"held_out_{task}"
    assert described["role"] == ("perplexity" if task == "perplexity" else "accuracy")
    assert described["higher_is_better"] == (task != "perplexity")
    answers = [row["answer"] for row in rows] if task == "next_word" else []
    assert described["chance_level"] == CHANCE.get(task, max(map(answers.count, answers), default=0) / 5)
    assert described["chance_meaning"]


def test_the_same_spec_makes_the_same_bytes(root, corpus, tmp_path):
    first = held_out_benchmark(root, corpus, "word_substitution", 30)
    second = held_out_benchmark(tmp_path, corpus, "word_substitution", 30)
    assert first.sha256 == second.sha256


def test_a_corpus_file_that_is_no_parquet_is_refused_by_name(tmp_path):
    def build(job):
        for part in ("held_out", "train"):
            (job.output / f"{part}-00000.parquet").write_text("not parquet")

    broken = publish_artifact(tmp_path, "corpus", "broken", build)
    with pytest.raises(UserError, match=r"held_out-00000\.parquet is no parquet file"):
        held_out_benchmark(tmp_path, broken, "word_order", 5)


def test_too_many_items_are_refused_by_the_stage(tmp_path, corpus):
    with pytest.raises(UserError, match="set items to at most"):
        held_out_benchmark(tmp_path, corpus, "word_order", 100_000)


def test_a_registered_file_that_is_gone_is_refused_with_the_version_that_had_it(tmp_path):
    task = BenchmarkTask(name="t", output_type="", items=1, include="gone/gone.yaml", config={}, data_files={})
    benchmark = Benchmark.model_construct(tasks=[task], groups={}, source={"lm_eval": "0.3.0"})
    with pytest.raises(UserError, match=r"gone\.yaml is missing: .* lm-eval 0\.3\.0"):
        write_task_files(benchmark, tmp_path, tmp_path)
