"""How much of a benchmark's items stands in training text: counted here by plain sets of words."""

import re

import pyarrow.parquet as parquet
import pytest
from conftest import held_out_benchmark, make_benchmark, make_corpus, rows_of
from test_hard_math import PROBLEMS, write
from test_harness import hub, settings  # noqa: F401

from effllm.runtime.stage import run
from effllm.stages import STAGES
from tests.conftest import spec_of
from tests.unit.conftest import Builder


def overlap(root, benchmark, corpus):
    from effllm.evaluation.overlap import build

    return run(
        STAGES["overlap"],
        build,
        spec=spec_of("overlap", {}),
        inputs={name: [artifact.directory / "manifest.json"]
                for name, artifact in (("benchmark", benchmark), ("corpus", corpus))},
        output=root / "overlap" / f"{benchmark.manifest.id}.{corpus.manifest.id}",
    )  # fmt: skip


def shares_of(artifact):
    return parquet.read_table(artifact.directory / "items.parquet").to_pylist()


def grams(text):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[at : at + 5]) for at in range(len(words) - 4)} or ({tuple(words)} if words else set())


def test_the_share_of_an_item_s_grams_in_training_is_that_of_plain_sets(root, corpus, texts, tmp_path):
    benchmark = held_out_benchmark(root, corpus, "word_order", 30, seed=5)
    sentences = [row["sentence"] for row in rows_of(benchmark)]
    # Half of one sentence, the whole of another: in other capitals, between other words.
    half = " ".join(sentences[0].split()[: len(sentences[0].split()) // 2])
    seen = make_corpus(tmp_path, "seen", ["none"], [*texts[1], f"And so {half}", f"He said: {sentences[1].upper()}!"])
    artifact = overlap(tmp_path, benchmark, seen)
    training = set().union(*(grams(text) for text in [*texts[1], f"And so {half}", f"He said: {sentences[1]}!"]))
    wanted = [len(grams(text) & training) / len(grams(text)) for text in sentences]
    found = shares_of(artifact)
    assert [row["share_in_training"] for row in found] == pytest.approx(wanted)
    assert [row["doc_id"] for row in found] == list(range(30)) and 0 < wanted[0] < wanted[1] == 1
    summary = artifact.json("overlap.json")
    assert summary["items_covered"] == sum(share >= 0.8 for share in wanted) >= 1
    assert summary["mean_share"] == pytest.approx(sum(wanted) / 30)
    assert summary["training_documents"] == len(texts[1]) + 2


def test_questions_of_the_harness_and_of_other_kinds_are_the_items(root, tmp_path, hub):  # noqa: F811
    choice = make_benchmark(root, "mmlu-overlap", settings("leaderboard_mmlu_pro", "acc", limit=3))
    math = write(tmp_path, PROBLEMS)
    formulas = make_benchmark(root, "math-overlap", {"kind": "hard_math", "source": {"kind": "file", "path": "x.json"}},
                              files=[math])  # fmt: skip
    asked = "Which word is number 1? " + "A question of type ODE, and then some"
    corpus = make_corpus(tmp_path, "asked", ["none"], [asked, "A question of type integral? Yes."])
    of_choice, of_formulas = (overlap(tmp_path, benchmark, corpus) for benchmark in (choice, formulas))
    shares = [row["share_in_training"] for row in shares_of(of_choice)]
    # Item 1 asks for that number, and its choices are not there.
    assert len(shares) == 3 and shares[0] == shares[2] == 0 < shares[1] < 0.8
    by_problem = dict(zip(PROBLEMS, (row["share_in_training"] for row in shares_of(of_formulas)), strict=True))
    assert by_problem == {"laplace": 1, "regimes": 1, "ode": 1, "roots": 0, "numeric": 0, "symbolic": 0}
    assert of_formulas.json("overlap.json")["items_covered"] == 3


def test_items_without_words_are_counted_apart(root, tmp_path):
    odd = make_benchmark(tmp_path, "odd", {"kind": "hard_math", "source": {"kind": "file", "path": "x.json"}}, files=[
        write(tmp_path, [PROBLEMS["numeric"] | {"question": "?!"}, PROBLEMS["numeric"] | {"question": "One two"}])
    ])  # fmt: skip
    artifact = overlap(tmp_path, odd, make_corpus(tmp_path, "short", ["none"], ["one, two"]))
    assert [row["share_in_training"] for row in shares_of(artifact)] == [None, 1.0]
    summary = artifact.json("overlap.json")
    assert (summary["items_without_words"], summary["items_covered"], summary["mean_share"]) == (1, 1, 1.0)


def test_models_of_the_study_have_the_column_and_others_the_reason(tiny, tmp_path):
    tiny["models"]["theirs"] = {"source": {"kind": "local", "path": "models/theirs"}}
    tiny["models"]["llama-1m.dora"]["label"] = "tuned"
    tiny["tables"]["table16"]["models"] += ["theirs", "llama-1m.dora"]
    graph = Builder(tiny, tmp_path).graph
    assert graph.study.corpus_behind("theirs") is None
    corpora = dict.fromkeys(("llama-1m", "phi3-1m", "llama-1m.dora"), "python-docs")
    assert graph.table_spec("table16")["corpora"] == corpora
    assert len(graph.table_parents("table16")["overlap"]) == 5
    from effllm.tables.benchmarks import _covered

    value, reason = _covered({}, "word-order", None)
    assert value is None and "is not this study's" in reason
