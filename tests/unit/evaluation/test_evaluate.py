"""Scores and costs against computations that do not go through lm-eval."""

import json
import math
import re
import sys

import pytest
import torch
from conftest import PROTOCOL, evaluate_model, held_out_benchmark, make_model, rows_of, samples_of, tiny_llama

from effllm.errors import UserError
from effllm.results.benchmark import Benchmark
from tests.conftest import spec_of
from tests.programs import run_program

STOPS = (".", "!", "?")


def log_likelihood(model, tokenizer, text):
    """Sum of float32 log-probabilities of the tokens of `text` after end-of-text."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.eos_token_id, *ids[:-1]]])).logits[0]
    chosen = torch.log_softmax(logits.float(), dim=-1).gather(1, torch.tensor(ids)[:, None])
    return chosen.sum().item(), len(ids)


def greedy(model, tokenizer, context, limit):
    """Tokens decoded after `context` until a stop string, end-of-text or `limit`."""
    ids, new = tokenizer.encode(context), []
    while len(new) < limit:
        with torch.no_grad():
            new.append(model(torch.tensor([[*ids, *new]])).logits[0, -1].argmax().item())
        if new[-1] == tokenizer.eos_token_id or any(stop in tokenizer.decode(new) for stop in STOPS):
            break
    return new


def overfit(model, tokenizer, texts, steps=45):
    """Train `model` on `texts` alone until it knows them by heart."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    end = tokenizer.eos_token_id
    rows = [[end, *tokenizer.encode(text)] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    for _ in range(steps):
        optimizer.zero_grad()
        model(ids, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def exact(root, tokenizer):
    """A random model in float32, where the order of additions does not matter much: (artifact, model)."""
    model = tiny_llama(tokenizer, seed=1, context=128).eval()
    return make_model(root, "random.fp32", model, tokenizer), model


@pytest.fixture(scope="module")
def swaps(root, corpus):
    return held_out_benchmark(root, corpus, "adjacent_swap", 150)


@pytest.fixture(scope="module")
def swap_evaluation(root, exact, swaps):
    return evaluate_model(root, exact[0], swaps)


def test_accuracy_equals_that_of_log_likelihoods_computed_apart(swap_evaluation, swaps, exact, tokenizer):
    samples, right = samples_of(swap_evaluation), 0
    for row, sample in zip(rows_of(swaps), samples, strict=True):
        expected = [log_likelihood(exact[1], tokenizer, choice)[0] for choice in row["choices"]]
        assert [score for score, _ in sample["answers"]] == pytest.approx(expected, abs=1e-3)
        is_right = expected[row["answer"]] == max(expected)
        assert sample["acc"] == is_right
        right += is_right
    assert swap_evaluation.json("evaluation.json")["score"] == pytest.approx(right / len(samples))


def test_requests_and_scored_tokens_are_counted_exactly(swap_evaluation, swaps, tokenizer):
    cost = swap_evaluation.json("evaluation.json")["cost"]
    choices = [choice for row in rows_of(swaps) for choice in row["choices"]]
    assert cost["requests"] == len(choices) == 300
    assert cost["scored_tokens"] == sum(len(tokenizer.encode(choice)) for choice in choices)
    assert cost["generated_tokens"] == cost["truncated_requests"] == 0
    assert cost["by_kind"].keys() == {"loglikelihood"}
    assert cost["model_calls"] == math.ceil(300 / 8)
    assert 0 < cost["model_seconds"] < cost["wall_seconds"]
    assert cost["latency_mean_ms"] == pytest.approx(1000 * cost["model_seconds"] / 300)


def test_an_ignorant_model_scores_chance(swap_evaluation):
    evaluation = swap_evaluation.json("evaluation.json")
    low, high = evaluation["ci95"]
    assert low < evaluation["chance_level"] == 0.5 < high
    share = evaluation["score"]
    assert evaluation["stderr"] == pytest.approx((high - low) / 2 / 1.96, rel=1e-4)
    assert evaluation["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 149), rel=0.03)


def test_the_scores_of_the_sentences_are_kept_for_tables_and_comparisons(swap_evaluation, swaps):
    evaluation, clusters = swap_evaluation.json("evaluation.json"), swap_evaluation.json("clusters.json")
    assert evaluation["clusters"] == len(clusters) == 150
    assert sum(total for total, _ in clusters.values()) / 150 == pytest.approx(evaluation["score"])
    for row, sample in zip(rows_of(swaps), samples_of(swap_evaluation), strict=True):
        assert sample["cluster"] == row["cluster"]
        assert clusters[row["cluster"]] == [sample["acc"], 1]


def test_the_evaluation_says_what_was_run(swap_evaluation):
    evaluation = swap_evaluation.json("evaluation.json")
    assert evaluation["metric"] == "acc,none"
    assert (evaluation["role"], evaluation["higher_is_better"]) == ("accuracy", True)
    assert evaluation["items"] == 150
    assert evaluation["tasks"]["held_out_adjacent_swap"]["n_shot"] == 0
    assert evaluation["max_length"] == 128
    assert evaluation["metrics"].keys() == {"acc,none", "acc_norm,none"}
    telemetry = evaluation["telemetry"]
    assert telemetry["status"] in ("ok", "invalid")
    absent = [key for key, value in telemetry.items() if value is None and key != "reason"]
    assert all(telemetry["reasons"].get(key) for key in absent)
    assert (swap_evaluation.directory / "records" / "telemetry").is_dir()


def test_the_scores_are_those_of_the_harness_alone(swap_evaluation, swaps, exact, tokenizer, tmp_path, monkeypatch):
    import lm_eval.evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from effllm.evaluation.tasks import write_task_files

    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)
    write_task_files(Benchmark.read(swaps.directory), swaps.directory, tmp_path)
    results = lm_eval.evaluator.simple_evaluate(
        model=HFLM(exact[1], tokenizer=tokenizer, batch_size=8),
        tasks=["held_out_adjacent_swap"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        random_seed=0,
        bootstrap_iters=200,
    )
    values = results["results"]["held_out_adjacent_swap"]
    evaluation = swap_evaluation.json("evaluation.json")
    assert evaluation["score"] == values["acc,none"]
    assert evaluation["metrics"]["acc,none"]["stderr"] == values["acc_stderr,none"]


def test_a_bfloat16_model_is_scored_without_rounding_its_log_likelihoods(root, model, corpus, tokenizer):
    from transformers import AutoModelForCausalLM

    benchmark = held_out_benchmark(root, corpus, "word_order", 20)
    evaluation = evaluate_model(root, model, benchmark, batch_size=1)
    loaded = AutoModelForCausalLM.from_pretrained(model.directory / "model", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for row, sample in zip(rows_of(benchmark), samples_of(evaluation), strict=True):
        expected = [log_likelihood(loaded, tokenizer, choice)[0] for choice in row["choices"]]
        assert [score for score, _ in sample["answers"]] == pytest.approx(expected, abs=0.02)


def test_rolling_perplexity_equals_a_direct_computation(root, corpus, exact, tokenizer):
    window = 128
    benchmark = held_out_benchmark(root, corpus, "perplexity", 6)
    evaluation = evaluate_model(root, exact[0], benchmark).json("evaluation.json")
    nats = size = words = tokens = 0
    for row in rows_of(benchmark):
        ids = tokenizer.encode(row["text"])
        for start in range(0, len(ids), window):
            end = min(start + window, len(ids))
            # The last window is full: it looks back as far as it can, and only what is new is scored.
            context = [tokenizer.eos_token_id, *ids[: end - 1]] if start == 0 else ids[end - window - 1 : end - 1]
            with torch.no_grad():
                logits = exact[1](torch.tensor([context])).logits[0, start - end :]
            scores = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(ids[start:end])[:, None])
            nats -= scores.double().sum().item()
        size += len(row["text"].encode())
        words += len(re.split(r"\s+", row["text"]))
        tokens += len(ids)
    assert tokens > 3 * window
    assert evaluation["score"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert evaluation["metrics"]["byte_perplexity,none"]["value"] == pytest.approx(math.exp(nats / size), rel=1e-5)
    assert evaluation["metrics"]["word_perplexity,none"]["value"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    assert evaluation["cost"]["scored_tokens"] == tokens
    assert (evaluation["role"], evaluation["higher_is_better"], evaluation["chance_level"]) == ("perplexity", False, 8)
    low, high = evaluation["ci95"]
    assert low < evaluation["score"] < high
    assert evaluation["stderr"] > 0 and "resamplings" in evaluation["stderr_source"]
    assert evaluation["reasons"]["metrics.bits_per_byte,none.stderr"]


def test_generated_tokens_and_answers_equal_a_plain_greedy_loop(root, corpus, exact, tokenizer):
    benchmark = held_out_benchmark(root, corpus, "next_word", 12)
    evaluation = evaluate_model(root, exact[0], benchmark, batch_size=1)
    decoded = []
    for row in rows_of(benchmark):
        decoded.append(greedy(exact[1], tokenizer, _last(tokenizer, row["context"], 112), 16))
    cost = evaluation.json("evaluation.json")["cost"]
    assert cost["requests"] == cost["model_calls"] == 12
    assert cost["generated_tokens"] == sum(map(len, decoded))
    assert cost["scored_tokens"] == 0


def test_prompts_of_generations_that_are_cut_to_fit_are_counted(root, corpus, exact, tokenizer, tmp_path):
    benchmark = held_out_benchmark(root, corpus, "next_word", 12)
    cost = evaluate_model(tmp_path, exact[0], benchmark, max_length=60).json("evaluation.json")["cost"]
    lengths = [len(tokenizer.encode(row["context"])) for row in rows_of(benchmark)]
    assert 12 > cost["truncated_requests"] == sum(length > 60 - 16 for length in lengths) > 0


def test_a_sentence_longer_than_the_context_is_unsupported(exact, swaps, tmp_path):
    artifact = evaluate_model(tmp_path, exact[0], swaps, max_length=20)
    assert artifact.manifest.status == "unsupported"
    assert "does not fit the context of 20 tokens" in artifact.manifest.reason


def test_progress_is_told_in_lines_where_there_is_no_terminal(root, exact, swaps, monkeypatch, capsys, tmp_path):
    import effllm.runtime.progress

    monkeypatch.setattr(effllm.runtime.progress, "LINE_INTERVAL_S", 0.0)
    evaluate_model(tmp_path, exact[0], swaps)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("progress: ")]
    # On a busy machine a line before them says so.
    lines = [line for line in lines if "requests" in line]
    assert len(lines) == 38
    assert lines[-1].startswith("progress: 300 loglikelihood requests: 38 model calls")


@pytest.mark.slow
def test_the_stage_runs_as_a_program(root, exact, swaps, tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps(spec_of("evaluate", {"protocol": {**PROTOCOL, "batch_size": 50}})))
    arguments = ["--spec", tmp_path / "spec.json", "--output", tmp_path / "results" / "evaluate" / "x"]
    for name, artifact in (("model", exact[0]), ("benchmark", swaps)):
        arguments += ["--input", f"{name}={artifact.directory / 'manifest.json'}"]
    run_program([sys.executable, "-m", "effllm.evaluation.evaluate", *map(str, arguments)])
    evaluation = json.loads((tmp_path / "results" / "evaluate" / "x" / "evaluation.json").read_text())
    assert evaluation["items"] == 150
    assert evaluation["cost"]["model_calls"] == 6


def _last(tokenizer, text, count):
    return tokenizer.decode(tokenizer.encode(text)[-count:])


@pytest.fixture(scope="module")
def oracle(root, corpus, tokenizer):
    """A model that knows thirty true sentences and eight last words by heart, and nothing else."""
    choices = held_out_benchmark(root, corpus, "adjacent_swap", 30)
    words = held_out_benchmark(root, corpus, "next_word", 8)
    texts = [row["sentence"] for row in rows_of(choices)]
    texts += [f"{row['context']} {row['answer']}." for row in rows_of(words)]
    model = overfit(tiny_llama(tokenizer, seed=2, hidden=128), tokenizer, texts)
    return make_model(root, "oracle.fp32", model, tokenizer), choices, words


def test_a_model_that_knows_the_sentences_beats_chance(root, oracle):
    model, choices, _ = oracle
    evaluation = evaluate_model(root, model, choices).json("evaluation.json")
    assert evaluation["score"] > 0.9
    assert evaluation["ci95"][0] > evaluation["chance_level"]


def test_the_last_word_is_matched_without_its_punctuation(root, oracle):
    model, _, words = oracle
    artifact = evaluate_model(root, model, words)
    evaluation = artifact.json("evaluation.json")
    assert evaluation["metric"] == "exact_match,first_word"
    assert evaluation["score"] > 0.8
    for row, sample in zip(rows_of(words), samples_of(artifact), strict=True):
        assert sample["exact_match"] == (sample["answers"][0].strip(".,;:!?'\"()") == row["answer"])


def test_the_last_word_is_found_behind_a_line_break_and_before_a_comma(oracle, tokenizer, monkeypatch, tmp_path):
    from lm_eval.models.huggingface import HFLM

    model, _, words = oracle

    def generate(self, context, **options):
        text = tokenizer.decode(context[0])
        (answer,) = (row["answer"] for row in rows_of(words) if row["context"] == text)
        return torch.cat([context, torch.tensor([tokenizer.encode(f"\n {answer}, and more.")])], dim=1)

    monkeypatch.setattr(HFLM, "_model_generate", generate)
    artifact = evaluate_model(tmp_path, model, words, batch_size=1)
    assert artifact.json("evaluation.json")["score"] == 1.0


def test_end_of_text_ends_the_count_of_a_row():
    from effllm.evaluation.metered import generated_tokens

    new = torch.tensor([[5, 6, 7, 8], [5, 0, 0, 0], [0, 0, 0, 0], [5, 6, 1, 0]])
    assert generated_tokens(new, [0, 1]) == 4 + 2 + 1 + 3
    assert generated_tokens(new, []) == 16
    assert generated_tokens(new[:, :0], [0]) == 0


def test_the_models_own_limit_bounds_the_protocols(root, corpus, exact):
    benchmark = held_out_benchmark(root, corpus, "adjacent_swap", 5)
    for asked, expected in ((64, 64), (4096, 128)):
        artifact = evaluate_model(root / f"limit-{asked}", exact[0], benchmark, max_length=asked)
        assert artifact.json("evaluation.json")["max_length"] == expected


def test_a_model_of_nan_is_a_failed_cell(root, corpus, tokenizer, swaps):
    broken = tiny_llama(tokenizer, context=128)
    with torch.no_grad():
        broken.lm_head.weight[3, 3] = float("nan")
    artifact = evaluate_model(root, make_model(root, "nan.fp32", broken, tokenizer), swaps)
    assert artifact.manifest.status == "nan"
    assert "NaN" in artifact.manifest.reason
    assert not (artifact.directory / "evaluation.json").exists()


def test_a_nan_on_some_items_is_a_failed_cell_and_no_wrong_answer(root, corpus, tokenizer, swaps):
    # The warm-up reads the first sixteen ids; the embedding of a later one is broken.
    broken = tiny_llama(tokenizer, context=128)
    with torch.no_grad():
        broken.model.embed_tokens.weight[tokenizer.encode(" the")[0]] = float("nan")
    artifact = evaluate_model(root, make_model(root, "some-nan.fp32", broken, tokenizer), swaps)
    assert artifact.manifest.status == "nan"
    assert "of 300 log-likelihoods" in artifact.manifest.reason


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: not enough memory: you tried"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_a_failed_cell(root, exact, swaps, monkeypatch, error, tmp_path):
    from effllm.evaluation.metered import MeteredLM

    def fail(self, generates):
        raise error

    monkeypatch.setattr(MeteredLM, "warm_up", fail)
    artifact = evaluate_model(tmp_path, exact[0], swaps)
    assert artifact.manifest.status == "oom"
    assert artifact.manifest.reason.startswith("out of memory")


def test_a_defect_is_not_taken_for_a_failed_cell(root, exact, swaps, monkeypatch, tmp_path):
    from effllm.evaluation.metered import MeteredLM

    def fail(self, generates):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(MeteredLM, "warm_up", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        evaluate_model(tmp_path, exact[0], swaps)


def test_a_context_without_room_for_a_prompt_is_unsupported(root, corpus, tokenizer):
    benchmark = held_out_benchmark(root, corpus, "next_word", 5)
    short = make_model(root, "short.fp32", tiny_llama(tokenizer, context=16), tokenizer)
    artifact = evaluate_model(root, short, benchmark)
    assert artifact.manifest.status == "unsupported"
    assert "16 tokens" in artifact.manifest.reason


def test_a_model_that_is_none_is_refused_with_its_path(root, swaps):
    from conftest import publish_artifact, quantization_of

    def build(job):
        (job.output / "model").mkdir()
        (job.output / "model" / "config.json").write_text(json.dumps({"model_type": "nothing known"}))
        job.write(quantization_of(job.output / "model"))

    with pytest.raises(UserError, match="model cannot be loaded"):
        evaluate_model(root, publish_artifact(root, "quantize", "empty.fp32", build), swaps)


def test_a_failed_model_fails_its_evaluations_with_its_own_reason(root, swaps):
    from conftest import publish_artifact

    from effllm.errors import CellFailure

    def build(job):
        raise CellFailure("unsupported", "the quantizer does not know it")

    artifact = evaluate_model(root, publish_artifact(root, "quantize", "unknown.int4", build), swaps)
    assert artifact.manifest.status == "unsupported"
    assert "the quantizer does not know it" in artifact.manifest.reason
