"""As many requests at once as memory holds, half as many where it ran out: the scores do not show which."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_llama
from lm_eval.api.instance import Instance

from effllm.evaluation import batches
from effllm.evaluation.batches import automatic_size, estimated_row_b, is_out_of_memory, rows_that_fit
from effllm.evaluation.metered import MeteredLM

TEXTS = ["one", "two of them", "three of them are more than two", "four", "five then", "and so on to six"] * 2
KINDS = {
    "loglikelihood": [(text, " more") for text in TEXTS],
    "loglikelihood_rolling": [(text,) for text in TEXTS],
    "generate_until": [(text, {"until": ["no such text"], "max_gen_toks": 3}) for text in TEXTS],
}


def run(tokenizer, kind, batch_size, most_rows=None):
    """(answers, harness) of a model that has memory for `most_rows` rows."""
    model = tiny_llama(tokenizer).eval()

    def refuse(module, args, kwargs):
        if len(args[0] if args else kwargs["input_ids"]) > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if most_rows is not None:
        model.register_forward_pre_hook(refuse, with_kwargs=True)
    harness = MeteredLM(model, tokenizer, batch_size=batch_size, max_length=None)
    requests = [Instance(kind, {}, arguments, number) for number, arguments in enumerate(KINDS[kind])]
    return getattr(harness, kind)(requests), harness


NO_PROCESS = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0))


def plain(answers):
    """Numbers or texts alone."""
    return [answer[0] if isinstance(answer, tuple) else answer for answer in answers]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_memory_does_not_hold_is_halved(tokenizer, kind):
    wanted, two = run(tokenizer, kind, 2)
    found, halved = run(tokenizer, kind, 8, most_rows=2)
    assert found == wanted
    assert (halved.meter.batch_size, halved.meter.batch_halvings) == (2, 2)
    # The attempts in vain are not among the costs.
    (cost,), (cost_of_two,) = halved.meter.kinds.values(), two.meter.kinds.values()
    assert (cost.requests, cost.model_calls) == (cost_of_two.requests, cost_of_two.model_calls)


def test_what_a_task_samples_is_that_of_the_batch_in_the_end(tokenizer, monkeypatch):
    drawing = {"until": ["no such text"], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0}
    monkeypatch.setitem(KINDS, "drawn", [(text, drawing) for text in TEXTS])
    monkeypatch.setattr(MeteredLM, "drawn", MeteredLM.generate_until, raising=False)
    answers = []
    for batch_size, most_rows in ((2, None), (8, 2), (4, None)):
        torch.manual_seed(5)
        answers.append(run(tokenizer, "drawn", batch_size, most_rows)[0])
    assert answers[0] == answers[1] != answers[2]


def test_memory_that_does_not_hold_one_request_is_out_of_memory(tokenizer):
    with pytest.raises(torch.OutOfMemoryError):
        run(tokenizer, "loglikelihood", 4, most_rows=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_automatic_batch_follows_the_memory_and_the_scores_do_not(tokenizer, kind, monkeypatch):
    answers, sizes = [], []
    for free_b in (1 << 40, 1 << 22, 1):
        memory = SimpleNamespace(
            virtual_memory=lambda b=free_b: SimpleNamespace(available=b), Process=lambda: NO_PROCESS
        )
        monkeypatch.setattr(batches, "psutil", memory)
        found, harness = run(tokenizer, kind, "auto")
        answers.append(found)
        sizes.append(harness.meter.batch_size)
        assert harness.meter.total().requests == len(TEXTS)
    assert sizes[0] > sizes[1] > sizes[2] == 1
    for found in answers[1:]:
        assert plain(found) == (answers[0] if kind == "generate_until" else pytest.approx(plain(answers[0]), abs=1e-5))


@pytest.mark.parametrize(
    ("row_b", "free_b", "tokens", "rows"),
    [(10, 1000, 2000, 64), (10, 639, 2000, 32), (10, 9, 2000, 1), (1, 1e9, 40, 256), (float("inf"), 1e9, 40, 1)],
)
def test_rows_are_a_power_of_two_that_fits(row_b, free_b, tokens, rows):
    assert rows_that_fit(row_b, free_b, tokens) == rows


def test_on_a_gpu_one_request_is_measured(monkeypatch):
    state = {"allocated": 100, "peak": 100, "calls": 0}

    def one():
        state["calls"] += 1
        state["peak"] = max(state["peak"], state["allocated"] + 50)

    figures = {
        "synchronize": lambda device: None,
        "memory_allocated": lambda device: state["allocated"],
        "memory_reserved": lambda device: 260,
        "max_memory_allocated": lambda device: state["peak"],
        "reset_peak_memory_stats": lambda device: state.update(peak=state["allocated"]),
        "mem_get_info": lambda device: (1500, 9999),
    }
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, figure)
    model = SimpleNamespace(device=torch.device("cuda"))
    # 0.8 of 1,500 free and 160 held bytes, by 50 a request, are 26.
    assert automatic_size(model, 2000, one) == 16
    assert state["calls"] == 2

    def too_large():
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    assert automatic_size(model, 2000, too_large) == 1


def test_the_estimate_covers_logits_and_cache(tokenizer):
    model = tiny_llama(tokenizer)
    output = model(torch.zeros(1, 50, dtype=torch.long), use_cache=True)
    cache_b = sum(tensor.nbytes for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values))
    logits_b = output.logits.nbytes + 2 * output.logits.float().nbytes
    assert logits_b + cache_b < estimated_row_b(model.config, 50, model.dtype) < 4 * (logits_b + cache_b)


def test_what_is_out_of_memory():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
