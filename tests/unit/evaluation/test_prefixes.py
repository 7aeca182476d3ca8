"""What prompts begin with alike is read once: the scores of whole prompts, up to rounding, from fewer tokens."""

import pytest
import torch
from conftest import evaluate_model, make_benchmark, make_model, samples_of, tiny_llama
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from test_harness import hub, settings  # noqa: F401
from transformers import MambaConfig, MambaForCausalLM

from effllm.evaluation.command_line import main
from effllm.evaluation.metered import MeteredLM
from effllm.evaluation.prefixes import _LEAST_SHARED, groups

SHOTS = "".join(f"Question: what is the plural of word {n}?\nAnswer: words {n}\n\n" for n in range(5))
LONG = " and then another thing that is to be known about it" * 3


def requests():
    """Items with choices of one token and of several, one without examples, and one of choices alone."""
    contexts = [
        f"{SHOTS}Question: {ask}\nAnswer:" for ask in ("which?", "who" + LONG, "where is it?", "who else" + LONG)
    ]
    pairs = [
        (context, choice) for context in [*contexts, "Apart."] for choice in (" a", " b", " the second word", " no")
    ]
    pairs += [("", "A text without a context."), (contexts[0], " a")]
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]


def counted(model):
    """How many tokens pass through the model from now on."""
    tokens = []
    hook = lambda module, args, kwargs: tokens.append((args[0] if args else kwargs["input_ids"]).numel())  # noqa: E731
    model.register_forward_pre_hook(hook, with_kwargs=True)
    return tokens


def scored(model, tokenizer, shares, max_length=None):
    harness = MeteredLM(model, tokenizer, batch_size=4, max_length=max_length, shares_prefixes=shares)
    tokens = counted(model)
    answers = harness.loglikelihood(requests())
    return answers, sum(tokens), harness.meter.total()


def mamba(tokenizer):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, state_size=4, num_hidden_layers=1)
    return MambaForCausalLM(config)


@pytest.mark.parametrize(
    ("make", "max_length", "least_saved"), [(tiny_llama, None, 2.5), (tiny_llama, 64, 1), (mamba, None, 0)]
)
def test_scores_are_those_of_whole_prompts(tokenizer, make, max_length, least_saved):
    model = make(tokenizer).eval()
    whole, all_tokens, cost = scored(model, tokenizer, shares=False, max_length=max_length)
    alike, few_tokens, cost_alike = scored(model, tokenizer, shares=True, max_length=max_length)
    assert [score for score, _ in alike] == pytest.approx([score for score, _ in whole], abs=2e-4)
    assert [greedy for _, greedy in alike] == [greedy for _, greedy in whole]
    assert all_tokens > least_saved * few_tokens
    for key in ("requests", "truncated_requests", "scored_tokens"):
        assert getattr(cost, key) == getattr(cost_alike, key)


def test_tokens_of_requests_are_the_harness_own_and_no_prompt_is_encoded_twice(tokenizer, monkeypatch):
    harness = MeteredLM(tiny_llama(tokenizer), tokenizer, batch_size=4, max_length=None)
    pairs = [(f"{context}{space}", choice) for context in ("one", "two") for space in ("", "  ") for choice in "ab"]
    pairs += [("", "alone"), ("", tokenizer.eos_token + "behind"), (" ", "x")]
    theirs, ours, encoded = [], [], []
    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", lambda self, requests, **_: theirs.append(requests) or [])
    super(MeteredLM, harness).loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
    monkeypatch.setattr(MeteredLM, "_loglikelihood_tokens", lambda self, requests: ours.append(requests) or [])
    whole = harness._encode_all
    harness._encode_all = lambda texts, *special: encoded.extend(texts) or whole(texts, *special)
    harness.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
    assert ours == theirs
    assert len(encoded) == len(set(encoded))


@limits(max_examples=60, deadline=None)
@given(st.sets(st.lists(st.integers(0, 1), min_size=1, max_size=120).map(tuple), max_size=12), st.integers(0, 90))
def test_groups_hold_every_input_once_and_what_they_share(inputs, length):
    inputs = {(7,) * length + tokens for tokens in inputs}
    made = groups(inputs)
    assert sorted(tokens for group in made for tokens in group.inputs) == sorted(inputs)
    for group in made:
        assert len({tokens[: group.shared] for tokens in group.inputs}) == 1
        assert all(group.shared < len(tokens) for tokens in group.inputs)
        assert len(group.inputs) == 1 or group.shared >= _LEAST_SHARED


def test_an_evaluation_says_the_same_and_its_spec_that_it_shared(root, tokenizer, hub, tmp_path, capsys):  # noqa: F811
    benchmark = make_benchmark(root, "mmlu-shared", settings("leaderboard_mmlu_pro", "acc", limit=4))
    model = make_model(root, "sharing.fp32", tiny_llama(tokenizer, seed=2), tokenizer)
    whole, shared = (
        evaluate_model(tmp_path / str(shares), model, benchmark, **settings)
        for shares, settings in ((False, {}), (True, {"shares_prefixes": True, "batch_size": "auto"}))
    )
    cost = shared.json("evaluation.json")["cost"]
    assert (cost["batch_size"], cost["batch_halvings"]) == (64, 0)
    assert whole.json("evaluation.json")["score"] == shared.json("evaluation.json")["score"]
    for one, other in zip(samples_of(whole), samples_of(shared), strict=True):
        assert [score for score, _ in other["answers"]] == pytest.approx(
            [score for score, _ in one["answers"]], abs=2e-4
        )
    assert shared.manifest.spec["config"]["protocol"]["shares_prefixes"]
    for stage in ("quantize", "benchmark"):
        (tmp_path / "True" / stage).symlink_to(root / stage)
    main([str(shared.directory), "--tasks", str(tmp_path / "tasks")])
    printed = capsys.readouterr()
    assert "--tasks leaderboard_mmlu_pro" in printed.out and "differ from this command's by rounding" in printed.err
