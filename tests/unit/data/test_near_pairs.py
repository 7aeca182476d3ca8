"""Near duplicates within a side of the split against brute force over sets of words."""

import random
from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest
from corpus_documents import document, documents, kept, write_parquet
from related_texts import altered, grams_of, jaccard, prose
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from effllm.data import arrays
from effllm.data.clusters import Clusters
from effllm.data.corpus import sample
from effllm.data.near_pairs import EDGE
from effllm.data.sampling import Decision
from effllm.data.settings import Corpus, NearDuplicates
from effllm.data.sources.files import FilesSource
from effllm.errors import UserError

CONFIG = {"source": {"kind": "files", "paths": ["unused.jsonl"]}, "held_out_fraction": 0.1, "near_duplicates": {}}


def families(rng, count):
    """Different texts of which about a third are altered copies of others, in any order."""
    texts = [prose(rng, rng.randrange(1, 160)) for _ in range(count * 2 // 3)]
    texts += [
        altered(rng, rng.choice(texts[: count // 16]), rng.choice([0.003, 0.006, 0.01, 0.02, 0.03]))
        for _ in range(count // 3)
    ]
    texts = list(dict.fromkeys(texts))
    rng.shuffle(texts)
    return texts


def near_by_definition(texts, threshold):
    """The pairs of places of texts that are as similar as that."""
    grams = [grams_of(text) for text in texts]
    holders = defaultdict(list)
    for number, found in enumerate(grams):
        for gram in found:
            holders[gram].append(number)
    candidates = {pair for found in holders.values() for pair in combinations(found, 2)}
    return {pair: value for pair in candidates if (value := jaccard(*(grams[n] for n in pair))) >= threshold}


def clusters_of(size, pairs):
    """The label of each document's cluster, and the first document of each."""
    later, earlier = np.array(sorted(pairs), dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(later)), (later, earlier)), shape=(size, size))
    labels = connected_components(graph, directed=False)[1]
    return labels, np.unique(labels, return_index=True)[1]


def run(texts, directory, files=3, lengths=None, **changes):
    """Sample the texts; returns the summary, what became of each without and with near duplicates, and the pairs."""
    rows = [document(number, text=text, token_count=50) for number, text in enumerate(texts)]
    for row, length in zip(rows, lengths or (), strict=False):
        row["token_count"] = length
    size = -(-len(rows) // files)
    for name in ("output", "scratch"):
        (directory / name).mkdir(parents=True)
    paths = [write_parquet(directory / f"{n}.parquet", rows[n * size : (n + 1) * size]) for n in range(files)]
    config = Corpus.model_validate(CONFIG | changes)
    summary = sample(FilesSource(paths), config, directory / "output", directory / "scratch")
    found = max(directory.glob("scratch/duplicates/of-*")).relative_to(directory)
    before, after, edges = (
        np.concatenate([arrays.load(path) for path in sorted(directory.glob(pattern))])
        for pattern in (f"{found}/decisions-*", "scratch/parts/*/decisions.npy", f"{found}/edges-*")
    )
    pairs = {}
    for later, earlier, similarity in edges.tolist():
        pairs[tuple((d >> 40) * size + (d & ((1 << 40) - 1)) for d in (earlier, later))] = similarity
    assert len(pairs) == len(edges)
    return summary, before, after, pairs


def test_pairs_are_those_of_brute_force_and_the_first_of_a_cluster_stays(tmp_path):
    texts = families(random.Random(0), 2400)
    summary, before, decisions, pairs = run(texts, tmp_path)
    held_out = before == Decision.HELD_OUT
    near = near_by_definition(texts, 0.8)
    expected = {pair: value for pair, value in near.items() if held_out[pair[0]] == held_out[pair[1]]}
    assert pairs.items() <= expected.items(), "precision is 1, and similarities are exact"
    assert len(expected) > 200 and len(pairs) >= 0.97 * len(expected)
    first = clusters_of(len(texts), pairs)[1]
    assert np.flatnonzero(decisions != Decision.CLUSTERED).tolist() == sorted(first.tolist())
    counts = summary.near_duplicates
    assert counts.pairs == len(pairs) and counts.documents == len({n for pair in pairs for n in pair})
    assert summary.dropped["clustered"] == len(texts) - len(first) == counts.documents - counts.clusters
    # What is shown is what was found, evenly from all of it.
    shown = [tuple(int(id[10:-1]) for id in pair.ids) for pair in counts.sample]
    assert len(set(shown)) == 20 and [pairs[pair] for pair in shown] == [pair.jaccard for pair in counts.sample]
    assert counts.sample[7].beginnings == [texts[number][:200] for number in shown[7]]


@pytest.mark.parametrize("keep", ["first", "longest"])
def test_a_token_budget_ends_with_the_shortest_beginning_whose_documents_that_stay_reach_it(tmp_path, keep):
    rng = random.Random(1)
    texts = families(rng, 600)
    lengths = [rng.randrange(1, 100) for _ in texts]
    _, before, _, pairs = run(texts, tmp_path, lengths=lengths, near_duplicates={"keep": keep})
    budget = sum(length for length, decision in zip(lengths, before, strict=True) if decision == Decision.TRAIN) // 2
    for stop in range(1, len(texts) + 1):
        labels, first = clusters_of(stop, [pair for pair in pairs if max(pair) < stop])
        stays = set(first.tolist())
        if keep == "longest":
            stays = {
                max(np.flatnonzero(labels == n).tolist(), key=lambda n: (lengths[n], -n)) for n in range(len(first))
            }
        tokens = sum(lengths[n] for n in stays if before[n] == Decision.TRAIN)
        if tokens >= budget:
            break
    summary, _, after, _ = run(
        texts, tmp_path / "budget", lengths=lengths, near_duplicates={"keep": keep}, maximum_tokens=budget
    )
    assert summary.budget_met and 100 < len(after) == stop < len(texts)
    assert set(np.flatnonzero(after != Decision.CLUSTERED).tolist()) == stays
    assert summary.near_duplicates.documents - summary.near_duplicates.clusters == stop - len(stays)


def test_what_leaves_before_any_end_of_the_source_is_what_it_would_be_if_that_were_all(tmp_path):
    rng = np.random.default_rng(2)
    pairs = sorted({tuple(sorted(pair, reverse=True)) for pair in rng.integers(0, 60, size=(50, 2)).tolist()})
    edges = np.array([(later, earlier, 0.9) for later, earlier in pairs if later != earlier], dtype=EDGE)
    arrays.save(tmp_path / "edges.npy", edges)
    clusters = Clusters([], [tmp_path / "edges.npy"], longest=False)
    for stop in range(61):
        labels, first = clusters_of(60, [pair for pair in pairs if pair[0] < stop])
        leaving = sorted(set(range(60)) - set(first.tolist()))
        assert clusters.leaving(0, stop).tolist() == leaving
        sizes = np.bincount(labels)
        assert clusters.counts(stop)[:2] == (sizes[sizes > 1].sum(), (sizes > 1).sum())


def test_of_boilerplate_that_hundreds_share_one_stays_and_documents_without_words_all_do(tmp_path):
    page = prose(random.Random(3), 120)
    texts = [f"{page} {number}" for number in range(300)] + ["." * (number + 1) for number in range(40)]
    _, before, after, pairs = run(texts, tmp_path)
    assert len(pairs) < 300 * 299 / 2 / 4
    for side in (Decision.TRAIN, Decision.HELD_OUT):
        assert np.flatnonzero(after == side)[0] == np.flatnonzero(before == side)[0]
        assert np.count_nonzero(after[:300] == side) == 1
        assert (after[300:] == before[300:]).all()


def test_it_is_an_option_whose_absence_changes_neither_spec_nor_summary(tmp_path, sample_files):
    settings = {"source": {"kind": "embedded"}, "held_out_fraction": 0.1}
    assert "near_duplicates" not in Corpus.model_validate(settings).plain()
    spec = Corpus.model_validate(settings | {"near_duplicates": {}}).plain()["near_duplicates"]
    assert (spec["hashes"], spec["bands"], spec["rows_per_band"], spec["algorithm"]) == (112, 14, 8, 2)
    texts = [prose(random.Random(number % 60), 80) + f" {number}" for number in range(100)]
    path = write_parquet(tmp_path / "a.parquet", [document(number, text=text) for number, text in enumerate(texts)])
    plain = sample_files([path], id="plain").json("corpus.json")
    assert "near_duplicates" not in plain and "clustered" not in plain["dropped"]
    corpus = sample_files([path], id="asked", near_duplicates={})
    summary = corpus.json("corpus.json")
    assert summary["near_duplicates"]["documents"] == 2 * summary["dropped"]["clustered"] > 20
    assert len(kept(corpus, "train")) == summary["splits"]["train"]["documents"]


def test_a_signature_that_the_bands_do_not_fill_and_one_of_another_library_are_refused(
    tmp_path, sample_files, monkeypatch
):
    with pytest.raises(ValueError, match="hashes 112 is not bands 20 times rows_per_band 8: set it to 160"):
        NearDuplicates.model_validate({"bands": 20})
    monkeypatch.setattr("effllm.data.minhash.RMinHash", type("Newer", (), {"ALGORITHM_VERSION": 3}))
    with pytest.raises(UserError, match=r"algorithm is 2, but the installed rensa makes signatures of version 3"):
        sample_files([write_parquet(tmp_path / "a.parquet", documents(9))], near_duplicates={})
