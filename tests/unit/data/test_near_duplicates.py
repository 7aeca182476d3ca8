"""Overlap of held-out and training documents against its definition, computed by sets of words."""

import random

import numpy as np
import pyarrow as pa
import pytest
from corpus_documents import document, kept, kept_ids, write_parquet
from related_texts import altered, grams_of, jaccard, prose

from effllm.data.near_duplicates import HeldOutGrams
from effllm.data.word_grams import word_grams
from effllm.errors import UserError


def related_texts(seed, count):
    """Held-out and training texts: unrelated ones, near copies of every degree, and passages in longer ones."""
    rng = random.Random(seed)
    held_out = [prose(rng, rng.randrange(2, 200)) for _ in range(count)]
    train = [prose(rng, rng.randrange(2, 200)) for _ in range(count)]
    for text in held_out[: count // 2]:
        train.append(altered(rng, text, rng.choice([0.01, 0.05, 0.1, 0.2])))
    for text in held_out[count // 2 : count // 2 + 10]:
        train.append(f"{prose(rng, 300)} {altered(rng, text, 0.02)} {prose(rng, 300)}")
    train += [" ".join(text.split()[1:40]) for text in held_out[-10:]]
    rng.shuffle(train)
    return held_out, train


def compared(held_out, train, size=10**6, maximum=1 << 22):
    index = HeldOutGrams(maximum)
    for start in range(0, len(held_out), size):
        index.add(pa.array(held_out[start : start + size]))
    leaves = [index.leaves(pa.array(train[start : start + size])) for start in range(0, len(train), size)]
    return np.concatenate(leaves), index.which_contained(len(held_out)), index.overlap().model_dump()


def test_grams_are_the_distinct_runs_of_five_words_whatever_stands_between_them():
    rng = random.Random(0)
    texts = [prose(rng, count) for count in (0, 1, 2, 4, 5, 6, 30, 400)] + ["", "...", "a b c d e f a b c d e f"]
    grams = list(word_grams(pa.array(texts)))
    assert [len(part) for part in grams] == [len(grams_of(text)) for text in texts]
    assert all((np.diff(part.astype(object)) > 0).all() for part in grams)
    punctuated = [text.upper().replace(" ", " \u2014\u201c\n").replace("A", "a") + "\u2026 \u00bb" for text in texts]
    for part, other in zip(grams, word_grams(pa.array(punctuated)), strict=True):
        assert part.tolist() == other.tolist()
    # Neither the neighbours nor the place in the column matter, nor more text than is hashed at a time.
    long = prose(rng, 100_000)
    column = pa.array(["x", *texts, long, *texts])
    again = list(word_grams(column))
    assert len(again[len(texts) + 1]) == len(grams_of(long))
    for start in (1, len(texts) + 2):
        for part, other in zip(grams, again[start:], strict=False):
            assert part.tolist() == other.tolist()
    assert [part.tolist() for part in word_grams(column.slice(1, 8))] == [part.tolist() for part in grams[:8]]


def test_letters_beyond_ascii_are_parts_of_words_and_unspaced_scripts_count_by_character():
    texts = pa.array(["él no vió más señas así", "漢字仮名交じり。文", "漢字かな"])
    assert [len(part) for part in word_grams(texts)] == [2, 4, 1]
    one, other = word_grams(pa.array(["für alle die da sind", "fur alle die da sind"]))
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_who_leaves_and_what_overlap_remains_are_those_of_the_definition(seed):
    held_out, train = related_texts(seed, 80)
    held, trained = [grams_of(text) for text in held_out], [grams_of(text) for text in train]
    leaves = [any(jaccard(t, h) >= 0.5 or len(t & h) >= 0.8 * len(t) for h in held) for t in trained]
    staying = [t for t, gone in zip(trained, leaves, strict=True) if not gone]
    contained = [any(len(t & h) >= 0.8 * len(h) for t in staying) for h in held]
    assert 10 < sum(leaves) < 80 and 3 < sum(contained) < 20, "the texts hold every case"
    found_leaves, found_contained, overlap = compared(held_out, train)
    assert found_leaves.tolist() == leaves
    assert found_contained.tolist() == contained
    remaining = [(h, len(text)) for h, text, gone in zip(held, held_out, contained, strict=True) if not gone]
    assert overlap["maximum_jaccard"] == max(jaccard(t, h) for h, _ in remaining for t in staying)
    everything = set().union(*staying)
    shared = [len(h & everything) / len(h) for h, _ in remaining]
    for share in (0.5, 0.8):
        covered = [length for (_, length), part in zip(remaining, shared, strict=True) if part >= share]
        assert overlap["held_out_documents_covered"][str(share)] == len(covered)
        expected = sum(covered) / sum(length for _, length in remaining)
        assert overlap["held_out_byte_share_covered"][str(share)] == pytest.approx(expected)
    grams = [len(h & everything) for h, _ in remaining], [len(h) for h, _ in remaining]
    assert overlap["held_out_gram_share_in_training"] == pytest.approx(sum(grams[0]) / sum(grams[1]))
    assert overlap["gram_share_compared"] == 1


def test_an_index_that_is_full_compares_a_share_of_the_grams_and_stays_within_its_memory():
    rng = random.Random(5)
    held_out = [prose(rng, 400) for _ in range(200)]
    # 80,000 grams into 8,192: an eighth or a sixteenth of them, about 25 to 50 of each document.
    near = [altered(rng, text, 0.02) for text in held_out[:50]]
    far = [altered(rng, text, 0.4) for text in held_out[50:100]]
    train = [*near, *far, *(prose(rng, 400) for _ in range(100))]
    leaves, _, overlap = compared(held_out, train, maximum=8192)
    assert overlap["gram_share_compared"] in (1 / 8, 1 / 16)
    assert leaves[:50].all() and not leaves[50:].any()
    for size in (7, 31):
        again = compared(held_out, train, size, maximum=8192)
        assert again[0].tolist() == leaves.tolist() and again[2] == overlap


def test_boilerplate_that_thousands_of_held_out_documents_share_hides_no_copy():
    rng = random.Random(6)
    page = prose(rng, 100)
    leaves, _, _ = compared([f"{page} {number} {number}" for number in range(3000)], [f"{page} other", prose(rng, 100)])
    assert leaves.tolist() == [True, False]


def test_the_stage_separates_groups_of_near_duplicates_and_counts_them(tmp_path, sample_files):
    rng = random.Random(7)
    rows = []
    for number in range(400):
        text = prose(rng, 80)
        # Groups of up to five: a chain, in which each is near to the one before.
        for _ in range(1 + number % 5):
            rows.append(document(len(rows), text=text))
            text = altered(rng, text, 0.05)
    corpus = sample_files([write_parquet(tmp_path / "a.parquet", rows)])
    sides = {split: [(row, grams_of(row["text"])) for row in kept(corpus, split)] for split in ("train", "held_out")}
    highest = max(jaccard(t, h) for _, t in sides["train"] for _, h in sides["held_out"])
    summary = corpus.json("corpus.json")
    assert highest == summary["overlap"]["maximum_jaccard"] < 0.5
    assert summary["dropped"]["near_duplicate"] > 50
    assert sum(map(len, sides.values())) + sum(summary["dropped"].values()) == len(rows) == summary["seen"]
    # What is held out is still drawn by its own text alone; only training documents made room.
    alone = kept_ids(sample_files([write_parquet(tmp_path / "b.parquet", rows[::5])], id="alone"))
    assert alone["held_out"] <= kept_ids(corpus)["held_out"]


def test_a_held_out_document_within_a_longer_training_document_is_dropped(tmp_path, sample_files):
    rng = random.Random(8)
    rows = [document(number, text=prose(rng, 60)) for number in range(100)]
    drawn = kept(sample_files([write_parquet(tmp_path / "a.parquet", rows)], id="drawn"), "held_out")
    # Of several that carry the same document, some are drawn for training whatever their texts.
    carriers = [
        document(1000 + number, text=f"{prose(rng, 400)} {drawn[0]['text']} {prose(rng, 400)}") for number in range(20)
    ]
    corpus = sample_files([write_parquet(tmp_path / "b.parquet", [*rows, *carriers])])
    carrying = {row["id"] for row in carriers}
    assert carrying & kept_ids(corpus)["train"]
    assert kept_ids(corpus)["held_out"] - carrying == {row["id"] for row in drawn[1:]}
    assert corpus.json("corpus.json")["dropped"]["contained"] == 1


def test_a_side_that_is_near_to_the_other_throughout_is_refused_with_the_remedy(tmp_path, sample_files):
    text = prose(random.Random(9), 300)
    rows = [document(number, text=f"{text} {number}") for number in range(50)]
    with pytest.raises(UserError, match=r"training split of .* all of its \d+ documents are near duplicates of the"):
        sample_files([write_parquet(tmp_path / "a.parquet", rows)])
