"""KL divergence and ratio of perplexities against computations in double precision that go through neither harness."""

import json
import math

import numpy
import pytest
import torch
from conftest import evaluate_model, held_out_benchmark, make_corpus, make_model, rows_of, tiny_llama
from scipy import stats
from scipy.special import log_softmax, rel_entr

from effllm.evaluation.divergence import Sums, compare_logits, summarize_divergence

CONTEXT = 48


@pytest.fixture(scope="module")
def pair(root, tokenizer):
    """A model in float32 and the same with its weights shaken: (artifact, model) of each."""
    model, other = (tiny_llama(tokenizer, seed=3, context=CONTEXT).eval() for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return [(make_model(root, f"pair.{id}", one, tokenizer), one) for id, one in (("whole", model), ("shaken", other))]


@pytest.fixture(scope="module")
def documents(root, texts):
    short = [text[: 300 + 20 * number] for number, text in enumerate(texts[0][:6])]
    return held_out_benchmark(root, make_corpus(root, "short", short, texts[1][:3]), "perplexity", 6)


def logits_of(model, tokenizer, text):
    """Float64 log-probabilities of the windows of a text and its tokens, by the definition of disjoint windows."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    read = [tokenizer.eos_token_id, *ids]
    rows = []
    for start in range(0, len(ids), CONTEXT):
        # The last window reads back as far as the context allows.
        end = min(start + CONTEXT, len(ids))
        first = max(end - CONTEXT, 0) if start else 0
        with torch.no_grad():
            logits = model(torch.tensor([read[first:end]])).logits[0, start - first :]
        rows.append(log_softmax(logits.numpy().astype(numpy.float64), axis=-1))
    return numpy.concatenate(rows), ids


def test_divergence_and_perplexity_are_those_of_plain_double_precision(root, pair, documents, tokenizer):
    (whole, base), (shaken, ours) = pair
    evaluation = evaluate_model(root, shaken, documents, reference=whole, divergence_from="whole")
    found = evaluation.json("evaluation.json")["divergence"]
    per_document = []
    for row in rows_of(documents):
        (mine, ids), (theirs, _) = (logits_of(model, tokenizer, row["text"]) for model in (ours, base))
        kl = rel_entr(numpy.exp(theirs), numpy.exp(mine)).sum()
        change = sum(theirs[place, id] - mine[place, id] for place, id in enumerate(ids))
        same = (mine.argmax(axis=-1) == theirs.argmax(axis=-1)).sum()
        per_document.append((kl, change, same, len(ids)))
    kl, change, same, tokens = (numpy.array(column, dtype=float) for column in zip(*per_document, strict=True))
    assert (found["documents"], found["tokens"]) == (6, tokens.sum())
    assert found["kl_nats"] == pytest.approx(kl.sum() / tokens.sum(), rel=1e-4)
    assert found["kl_nats"] > 0.001
    assert found["nll_change_nats"] == pytest.approx(change.sum() / tokens.sum(), rel=1e-3, abs=1e-6)
    assert found["perplexity_ratio"] == pytest.approx(math.exp(found["nll_change_nats"]))
    assert found["perplexity"] == pytest.approx(found["perplexity_ratio"] * found["reference_perplexity"])
    assert found["same_top_token"] == same.sum() / tokens.sum()
    # The linearized error of a ratio of sums over documents (Cochran 6.8).
    residuals = kl - kl.sum() / tokens.sum() * tokens
    error = math.sqrt(6 / 5 * (residuals**2).sum()) / tokens.sum()
    assert found["kl_nats_stderr"] == pytest.approx(error, rel=1e-3)
    reach = stats.t.ppf(0.975, 5) * error
    assert found["kl_nats_ci95"] == pytest.approx([found["kl_nats"] - reach, found["kl_nats"] + reach], rel=1e-3)
    lines = [json.loads(line) for line in (evaluation.directory / "records/divergence.jsonl").read_text().splitlines()]
    assert [line["kl"] for line in lines] == pytest.approx(kl, rel=1e-4)
    assert {line["cluster"] for line in lines} == {row["cluster"] for row in rows_of(documents)}
    # The text is scored with the same windows: bits per byte of the score are nats per token of the comparison.
    score = evaluation.json("evaluation.json")["score"]
    size = sum(len(row["text"].encode()) for row in rows_of(documents))
    assert math.log(found["perplexity"]) * found["tokens"] / size / math.log(2) == pytest.approx(score, rel=1e-5)


def test_a_model_does_not_diverge_from_itself(root, pair, documents):
    artifact, _ = pair[0]
    evaluation = evaluate_model(root, artifact, documents, reference=artifact, divergence_from="whole")
    found = evaluation.json("evaluation.json")["divergence"]
    assert (found["kl_nats"], found["nll_change_nats"], found["perplexity_ratio"]) == (0.0, 0.0, 1.0)
    assert (found["same_top_token"], found["kl_nats_ci95"]) == (1.0, [0.0, 0.0])


def test_without_a_reference_nothing_is_compared(root, pair, documents):
    assert "divergence" not in evaluate_model(root, pair[1][0], documents).json("evaluation.json")


def test_tokens_that_the_reference_rules_out_add_nothing_and_nan_is_told():
    theirs = torch.tensor([[0.0, 1.0, -math.inf]])
    ours = torch.tensor([[0.5, 0.5, -math.inf]])
    kl, nll, reference_nll, same = compare_logits(ours, theirs, torch.tensor([1])).tolist()
    share = math.e / (1 + math.e)
    expected = share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share))
    assert (kl, nll, reference_nll, same) == pytest.approx((expected, math.log(2), -math.log(share), 0.0))
    with pytest.raises(FloatingPointError):
        compare_logits(torch.full((1, 3), math.nan), theirs, torch.tensor([1]))


def test_one_document_has_no_interval():
    found = summarize_divergence([Sums(1.0, 5.0, 4.0, 1.0, 2), Sums(0.0, 0.0, 0.0, 0.0, 0)], ["a", "b"], "bfloat16")
    assert (found.kl_nats, found.documents, found.kl_nats_ci95) == (0.5, 1, None)
    assert found.cell("kl_nats_ci95") == (None, "one document has no spread")


def test_what_no_number_holds_is_said() -> None:
    ours, theirs = torch.zeros(1, 3), torch.zeros(1, 3)
    ours[0, 1] = -math.inf
    with pytest.raises(FloatingPointError, match="rules out a token that comes"):
        compare_logits(ours, theirs, torch.tensor([0]))
    with pytest.raises(FloatingPointError, match="900 nats a token"):
        summarize_divergence([Sums(1.0, 9000.0, 2.0, 0.0, 10)], [0], "bfloat16")
