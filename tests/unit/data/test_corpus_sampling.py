"""Which documents enter a corpus, and that nothing but their content, the seed and the order decides it."""

import json
import os
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from corpus_documents import document, documents, kept, kept_ids, write_parquet

from effllm.data.sampling import SPLIT_SALT
from effllm.data.schema import SCHEMA
from effllm.data.shards import ShardWriter
from effllm.errors import UserError
from effllm.runtime.artifact import digest_tree
from tests.conftest import spec_of


def is_held_out(text, fraction):
    """The split as its definition says it, one document at a time."""
    return int.from_bytes(xxhash.xxh3_128_digest(text.encode(), SPLIT_SALT)[:8], "big") < fraction * 2**64


def test_without_filters_every_document_is_kept_in_order_with_all_its_columns(tmp_path, sample_files):
    rows = documents(2500)
    corpus = sample_files([write_parquet(tmp_path / "a.parquet", rows)])
    assert kept(corpus, "train") == [row for row in rows if not is_held_out(row["text"], 0.2)]
    assert kept(corpus, "held_out") == [row for row in rows if is_held_out(row["text"], 0.2)]


def test_languages_keep_those_listed_and_drop_null(tmp_path, sample_files):
    rows = [document(n, language=["en", "fr", "de", None][n % 4]) for n in range(80)]
    corpus = sample_files([write_parquet(tmp_path / "a.parquet", rows)], languages=["en", "fr"])
    found = kept_ids(corpus)
    assert found["train"] | found["held_out"] == {row["id"] for row in rows if row["language"] in ("en", "fr")}
    assert corpus.json("corpus.json")["dropped"]["language"] == 40


def test_minimum_int_score_keeps_it_and_above_and_drops_null(tmp_path, sample_files):
    rows = [document(n, int_score=[2, 3, 4, None][n % 4]) for n in range(80)]
    corpus = sample_files([write_parquet(tmp_path / "a.parquet", rows)], minimum_int_score=3)
    found = kept_ids(corpus)
    assert found["train"] | found["held_out"] == {row["id"] for row in rows if (row["int_score"] or 0) >= 3}
    assert corpus.json("corpus.json")["dropped"]["int_score"] == 40


@pytest.mark.parametrize(
    ("filters", "reason", "passes"),
    [
        ({"minimum_language_score": 0.7}, "language_score", lambda row: (row["language_score"] or 0) >= 0.7),
        ({"minimum_score": 3.1}, "score", lambda row: (row["score"] or 0) >= 3.1),
        ({"minimum_document_tokens": 20}, "length", lambda row: row["token_count"] >= 20),
        (
            {"minimum_document_tokens": 20, "maximum_document_tokens": 40},
            "length",
            lambda row: 20 <= row["token_count"] <= 40,
        ),
        ({"maximum_repeated_line_share": 0.5}, "repetition", lambda row: row["text"].count("Document") < 3),
    ],
)
def test_filters_keep_what_passes_and_count_the_rest(tmp_path, sample_files, filters, reason, passes):
    rows = [
        document(
            n,
            language_score=[0.6, 0.7, 0.9, None][n % 4],
            score=[3.0, 3.1, None][n % 3],
            token_count=n % 60,
            text=document(n)["text"][: None if n % 2 else 90],
        )
        for n in range(240)
    ]
    corpus = sample_files([write_parquet(tmp_path / "a.parquet", rows)], filters=filters)
    found = kept_ids(corpus)
    assert found["train"] | found["held_out"] == {row["id"] for row in rows if passes(row)}
    dropped = corpus.json("corpus.json")["dropped"]
    assert dropped[reason] == sum(not passes(row) for row in rows) > 0
    assert set(dropped) & {"language_score", "score", "length", "repetition"} == {reason}


def test_filters_that_are_not_set_change_neither_spec_nor_summary(tmp_path, sample_files):
    from effllm.data.settings import Corpus

    settings = {"source": {"kind": "embedded"}, "held_out_fraction": 0.1}
    assert "filters" not in Corpus.model_validate(settings).plain()
    assert "filters" in Corpus.model_validate(settings | {"filters": {"minimum_score": 3.0}}).plain()
    corpus = sample_files([write_parquet(tmp_path / "a.parquet", documents(100))])
    assert (
        list(corpus.json("corpus.json")["dropped"])[-1] == "not_sampled"
        and len(corpus.json("corpus.json")["dropped"]) == 7
    )


def test_lengths_that_leave_nothing_are_refused():
    from effllm.data.settings import Filters

    with pytest.raises(ValueError, match="minimum_document_tokens 9 is above maximum_document_tokens 5"):
        Filters.model_validate({"minimum_document_tokens": 9, "maximum_document_tokens": 5})


def test_repetition_counts_lines_that_were_there_before():
    from effllm.data.sampling import repeated_line_share

    assert repeated_line_share("a\nb\n\n a \nc") == 0.25
    assert repeated_line_share("") == repeated_line_share("\n\n") == 0


def test_texts_without_characters_are_dropped_and_counted(tmp_path, sample_files):
    rows = [*documents(40), document(40, text="")]
    counts = sample_files([write_parquet(tmp_path / "a.parquet", rows)]).json("corpus.json")
    assert {reason: count for reason, count in counts["dropped"].items() if count} == {"empty": 1}


def test_sample_fraction_draws_its_share_by_seed_and_id_alone(tmp_path, sample_files):
    rows = documents(4000)
    first = write_parquet(tmp_path / "a.parquet", rows)
    other_texts = [row | {"text": row["text"] + "changed"} for row in rows]
    second = write_parquet(tmp_path / "b.parquet", other_texts)

    def draw(path, id, seed):
        found = kept_ids(sample_files([path], id=id, sample_fraction=0.3, seed=seed))
        return found["train"] | found["held_out"]

    drawn = draw(first, "seed-1", 1)
    # Five standard deviations of a binomial draw.
    assert abs(len(drawn) - 1200) < 5 * (4000 * 0.3 * 0.7) ** 0.5
    assert draw(second, "other-texts", 1) == drawn
    overlap = len(draw(first, "seed-2", 2) & drawn)
    assert abs(overlap - 360) < 5 * (4000 * 0.09 * 0.91) ** 0.5


def test_a_larger_sample_contains_the_smaller_one(tmp_path, sample_files):
    path = write_parquet(tmp_path / "a.parquet", documents(1000))
    small = kept_ids(sample_files([path], id="small", sample_fraction=0.2))
    large = kept_ids(sample_files([path], id="large", sample_fraction=0.5))
    assert small["train"] < large["train"] and small["held_out"] < large["held_out"]


def test_of_equal_texts_the_first_in_source_order_stays(tmp_path, sample_files):
    rows = documents(1500)
    copies = [row | {"id": f"copy-{row['id']}"} for row in rows[:1200]]
    # Copies within a batch, across batches and across files.
    first = write_parquet(tmp_path / "a.parquet", [*rows[:10], *copies[:10], *rows[10:]])
    second = write_parquet(tmp_path / "b.parquet", copies[10:])
    corpus = sample_files([first, second])
    found = kept_ids(corpus)
    assert found["train"] | found["held_out"] == {row["id"] for row in rows}
    assert corpus.json("corpus.json")["dropped"]["duplicate"] == 1200


def test_a_filtered_copy_does_not_hide_the_text_from_a_later_one(tmp_path, sample_files):
    rows = [document(0, language="fr"), document(0, id="second"), *documents(40)[1:]]
    found = kept_ids(sample_files([write_parquet(tmp_path / "a.parquet", rows)], languages=["en"]))
    assert "second" in found["train"] | found["held_out"]


def test_the_budget_ends_the_stream_at_the_document_that_meets_it(tmp_path, sample_files):
    rows = [document(n, token_count=10 + n % 7) for n in range(3000)]
    path = write_parquet(tmp_path / "a.parquet", rows)
    for budget in (500, 5_000, 20_000):
        corpus = sample_files([path], id=f"budget-{budget}", maximum_tokens=budget)
        expected, tokens = [], 0
        for row in rows:
            expected.append(row)
            tokens += 0 if is_held_out(row["text"], 0.2) else row["token_count"]
            if tokens >= budget:
                break
        counts = corpus.json("corpus.json")
        assert counts["budget_met"] is True
        assert counts["seen"] == len(expected)
        assert counts["splits"]["train"]["tokens"] == tokens
        assert kept(corpus, "train") == [row for row in expected if not is_held_out(row["text"], 0.2)]
        assert kept(corpus, "held_out") == [row for row in expected if is_held_out(row["text"], 0.2)]


def test_a_budget_beyond_the_source_takes_everything_and_says_so(tmp_path, sample_files):
    path = write_parquet(tmp_path / "a.parquet", documents(100))
    counts = sample_files([path], maximum_tokens=10**9).json("corpus.json")
    assert counts["budget_met"] is False and counts["seen"] == 100


def test_a_text_is_on_the_same_side_whatever_its_seed_id_and_source(tmp_path, sample_files):
    rows = documents(600)
    parquet = write_parquet(tmp_path / "a.parquet", rows)
    lines = tmp_path / "b.jsonl"
    lines.write_text("".join(json.dumps(row | {"id": f"other-{row['id']}"}) + "\n" for row in reversed(rows)))
    one = sample_files([parquet], id="one", seed=1)
    two = sample_files([lines], id="two", seed=2, sample_fraction=0.7, maximum_tokens=15_000)
    held_out = {row["text"] for row in kept(one, "held_out")} | {row["text"] for row in kept(two, "held_out")}
    train = {row["text"] for row in kept(one, "train")} | {row["text"] for row in kept(two, "train")}
    assert held_out and train and not held_out & train


def test_a_larger_held_out_share_contains_the_smaller_one(tmp_path, sample_files):
    path = write_parquet(tmp_path / "a.parquet", documents(1000))
    small = kept_ids(sample_files([path], id="small", held_out_fraction=0.05))
    large = kept_ids(sample_files([path], id="large", held_out_fraction=0.3))
    assert small["held_out"] < large["held_out"]
    assert abs(len(large["held_out"]) - 300) < 5 * (1000 * 0.3 * 0.7) ** 0.5


def test_the_order_of_rows_does_not_decide_which_are_kept(tmp_path, sample_files):
    rows = documents(2000)
    shuffled = random.Random(0).sample(rows, len(rows))
    one = sample_files([write_parquet(tmp_path / "a.parquet", rows)], id="one", sample_fraction=0.5)
    two = sample_files([write_parquet(tmp_path / "b.parquet", shuffled)], id="two", sample_fraction=0.5)
    assert kept_ids(one) == kept_ids(two)


def test_shards_hold_shard_documents_each(tmp_path, sample_files):
    corpus = sample_files([write_parquet(tmp_path / "a.parquet", documents(5000))], shard_documents=2300)
    shards = sorted(corpus.directory.glob("train-*.parquet"))
    train = corpus.json("corpus.json")["splits"]["train"]["documents"]
    assert [pq.read_metadata(shard).num_rows for shard in shards] == [2300, train - 2300]


def test_the_bytes_of_shards_do_not_depend_on_how_documents_were_batched(tmp_path):
    # Long enough for several pages in a row group.
    rows = [document(n, text=document(n)["text"] * (5 + n % 9)) for n in range(5000)]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    digests = []
    for size in (7, 999, 5000):
        directory = tmp_path / str(size)
        directory.mkdir()
        writer = ShardWriter(directory, "train", shard_documents=4100)
        for start in range(0, 5000, size):
            writer.write(batch.slice(start, size))
        writer.close()
        digests.append(digest_tree(directory))
    assert list(digests[0]) == ["train-00000.parquet", "train-00001.parquet"]
    assert digests[0] == digests[1] == digests[2]


def test_the_summary_counts_what_the_shards_hold(tmp_path, sample_files):
    corpus = sample_files([write_parquet(tmp_path / "a.parquet", [document(n, token_count=n) for n in range(500)])])
    summary = corpus.json("corpus.json")
    for split in ("train", "held_out"):
        rows = kept(corpus, split)
        assert summary["splits"][split] == {
            "documents": len(rows),
            "tokens": sum(row["token_count"] for row in rows),
            "utf8_bytes": sum(len(row["text"].encode()) for row in rows),
        }
    assert summary["seen"] == 500 and summary["budget_met"] is None


def test_processes_with_different_hash_seeds_write_the_same_bytes(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [*documents(1500), *documents(300)])
    config = {
        "source": {"kind": "files", "paths": ["unused.jsonl"]},
        "sample_fraction": 0.6,
        "held_out_fraction": 0.1,
        "seed": 11,
    }
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(spec_of("corpus", config)))
    manifests = []
    for seed in ("1", "2"):
        output = tmp_path / seed / "corpus" / "sample"
        argv = [sys.executable, "-m", "effllm.data.corpus", "--spec", spec, "--input", f"files={path}"]
        subprocess.run([*argv, "--output", output], check=True, env=os.environ | {"PYTHONHASHSEED": seed})
        manifests.append((output / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_nothing_left_names_what_each_filter_dropped(tmp_path, sample_files):
    path = write_parquet(tmp_path / "a.parquet", documents(30, language="fr"))
    with pytest.raises(UserError, match=r"nothing of .* is left: of 30 documents .*language 30.*loosen"):
        sample_files([path], languages=["en"])


def test_an_empty_held_out_split_is_refused_with_the_remedy(tmp_path, sample_files):
    path = write_parquet(tmp_path / "a.parquet", documents(5))
    with pytest.raises(UserError, match=r"held-out split of .* is empty: held_out_fraction 1e-06 .*raise it"):
        sample_files([path], held_out_fraction=1e-6)


def test_an_empty_training_split_is_refused_with_the_remedy(tmp_path, sample_files):
    path = write_parquet(tmp_path / "a.parquet", documents(5))
    with pytest.raises(UserError, match=r"training split of .* is empty: .*lower it"):
        sample_files([path], held_out_fraction=0.999999)
