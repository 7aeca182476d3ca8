"""The command that is printed for an evaluation, run by the harness itself, gives the same score to the last digit."""

import functools
import json
import shlex
import sys

import pytest
from conftest import evaluate_model, held_out_benchmark, make_benchmark, make_model, samples_of, tiny_llama

from effllm.errors import UserError
from effllm.evaluation.command_line import command_line
from tests.conftest import cut_down
from tests.unit.conftest import Builder

PRECISIONS = ("bfloat16", "float16", "int4")
BENCHMARKS = ("word-substitution", "next-word", "perplexity")


@pytest.fixture
def by_itself(monkeypatch, tmp_path):
    """Run a printed command in this process; the metrics of its task, and the answers by item."""
    import lm_eval.__main__
    import lm_eval.evaluator
    import lm_eval.tasks

    # Neither is of consequence for a score: a description of the machine, and the index of all registered tasks.
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)
    few = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)

    def run(command, all_tasks=False):
        words = shlex.split(command)
        first = words.index("lm-eval")
        for name, _, value in (word.partition("=") for word in words[:first]):
            monkeypatch.setenv(name, value)
        output = tmp_path / "output"
        monkeypatch.setattr(sys, "argv", [*words[first:], "--output_path", str(output), "--log_samples"])
        with monkeypatch.context() as patch:
            if not all_tasks:
                patch.setattr(lm_eval.tasks, "TaskManager", few)
            lm_eval.__main__.cli_evaluate()
        (file,) = output.rglob("results_*.json")
        results = json.loads(file.read_text())["results"]
        file.unlink()
        return results

    return run


@pytest.fixture(scope="module")
def study(builder, tiny_text, tmp_path_factory):
    """A cut-down study with the three precisions and a benchmark of each kind of request."""
    study = cut_down(tiny_text)
    study["precisions"]["float16"] = dict(tiny_text["precisions"]["float16"])
    study["benchmarks"] |= {id: dict(tiny_text["benchmarks"][id]) for id in ("word-substitution", "next-word")}
    study["benchmarks"]["word-substitution"]["items"] = 40
    study["benchmarks"]["next-word"]["items"] = 6
    return Builder(study, tmp_path_factory.mktemp("command")).take_text(builder)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_harness_by_itself_gives_the_same_score(study, by_itself, tmp_path, precision, benchmark):
    artifact = study.build("evaluate", f"llama-1m.{precision}.{benchmark}")
    scores = artifact.json("evaluation.json")
    command = command_line(artifact.directory, tmp_path / "tasks")
    results = by_itself(command)[next(iter(scores["tasks"]))]
    for metric, figures in scores["metrics"].items():
        assert results[metric] == figures["value"]


@pytest.mark.slow
def test_the_precision_of_the_softmax_is_what_made_scores_differ(study, by_itself, tmp_path):
    """Without it the harness rounds: log-likelihoods near -60 in bfloat16 lie 0.25 apart."""
    artifact = study.build("evaluate", "llama-1m.int4.perplexity")
    command = command_line(artifact.directory, tmp_path / "tasks")
    rounded = by_itself(command.replace("softmax_dtype=float32,", ""))["held_out_perplexity"]
    assert rounded["bits_per_byte,none"] != artifact.json("evaluation.json")["score"]


def test_the_command_reproduces_a_text_begun_by_its_tokenizer(root, corpus, texts, by_itself, tmp_path):
    from test_begin_of_text import llama3

    tokenizer = llama3(texts[1][:20])
    model = make_model(root, "begun.fp32", tiny_llama(tokenizer, seed=6), tokenizer)
    artifact = evaluate_model(root, model, held_out_benchmark(root, corpus, "perplexity", 2, seed=1), max_length=64)
    results = by_itself(command_line(artifact.directory, tmp_path / "tasks"))["held_out_perplexity"]
    assert results["bits_per_byte,none"] == artifact.json("evaluation.json")["score"]


@pytest.mark.slow
def test_the_command_reproduces_a_registered_group_beside_the_registered_ones(
    root, tokenizer, by_itself, tmp_path, monkeypatch
):
    """GPQA shuffles its choices by the seed, and its own name is in lm-eval's index too."""
    import datasets
    from test_harness import HUB, settings

    from effllm.evaluation import harness_data

    class Dataset:
        def __init__(self, repo, name, revision, directory, **options):
            self.label, self._rows = repo, functools.partial(HUB[repo], name)

        def load(self, split):
            return datasets.Dataset.from_list(self._rows(split))

    monkeypatch.setattr(harness_data, "HubDataset", Dataset)
    benchmark = make_benchmark(root, "gpqa-command", settings("leaderboard_gpqa", "acc_norm", limit=2))
    model = make_model(root, "grouped.fp32", tiny_llama(tokenizer, seed=7), tokenizer)
    artifact = evaluate_model(root, model, benchmark, seed=3)
    results = by_itself(command_line(artifact.directory, tmp_path / "tasks"), all_tasks=True)
    scores = artifact.json("evaluation.json")
    assert results["leaderboard_gpqa"]["acc_norm,none"] == scores["score"]
    for task, figures in scores["tasks"].items():
        assert results[task]["acc_norm,none"] == figures["score"]


def test_the_command_decodes_as_the_study_does_and_not_as_the_model_s_files_ask(
    root, corpus, tokenizer, by_itself, tmp_path
):
    # Nor do they name an end-of-text token: it is the tokenizer's.
    asked = {"num_beams": 2, "repetition_penalty": 3.0, "min_new_tokens": 4, "suppress_tokens": list(range(100, 400))}
    model = make_model(root, "beams.fp32", tiny_llama(tokenizer, seed=8), tokenizer, asked)
    artifact = evaluate_model(root, model, held_out_benchmark(root, corpus, "next_word", 6, seed=3))
    assert artifact.json("evaluation.json")["ignored_generation_settings"] == asked
    by_itself(command_line(artifact.directory, tmp_path / "tasks"))
    (file,) = (tmp_path / "output").rglob("samples_*.jsonl")
    alone = [json.loads(line) for line in file.read_text().splitlines()]
    assert [item["filtered_resps"] for item in alone] == [item["answers"] for item in samples_of(artifact)]


def test_an_evaluation_without_a_score_has_no_command(root, corpus, model, tmp_path):
    benchmark = held_out_benchmark(root, corpus, "word_order", 3, seed=2)
    failed = evaluate_model(root, model, benchmark, max_length=8)
    assert failed.manifest.status == "unsupported"
    with pytest.raises(UserError, match="has no score"):
        command_line(failed.directory, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        command_line(tmp_path / "nothing", tmp_path)
