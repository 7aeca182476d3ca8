"""Decoding over a static cache, and by CUDA graphs where there is a GPU, chooses the tokens that `generate` chooses."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.errors import CellFailure
from effllm.models.decoder import EffConfig, EffForCausalLM
from effllm.profiling.graphs import GraphedDecoding, Graphs, StaticSteps, what_ended_recording
from effllm.study.evaluation import Workload

NEW_TOKENS = 9


def _model(family: str = "qwen2", device: str = "cpu", **settings: Any) -> Any:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        # Wide enough that the next token depends on all before it, and is never chosen by a hair.
        "initializer_range": 0.3,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(family, **shape | settings)
    return AutoModelForCausalLM.from_config(config).eval().to(device)


def _prompt(seed: int = 0) -> torch.Tensor:
    return torch.randint(300, (2, 11), generator=torch.Generator().manual_seed(seed))


def _generated(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    """The tokens that the library's own greedy decoding over a growing cache appends."""
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False)
    return output[:, prompt.shape[1] :]


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen2", {}),
    ("gpt_neox", {}),
    # A window that is just long enough for prompt and answer.
    ("mistral", {"sliding_window": 20}),
]


@pytest.mark.parametrize(("family", "settings"), FAMILIES)
@torch.inference_mode()
def test_static_steps_choose_what_generate_chooses_again_and_again(family: str, settings: dict[str, Any]) -> None:
    model, prompt = _model(family, **settings), _prompt()
    expected = _generated(model, prompt)
    assert len(set(expected.flatten().tolist())) > 4, "a model that repeats itself shows nothing"
    steps = StaticSteps(model, prompt, NEW_TOKENS)
    for _ in range(2):
        steps.prefill()
        chosen = [steps.token.clone()]
        for _ in range(NEW_TOKENS - 1):
            steps.step()
            chosen.append(steps.token.clone())
        assert torch.equal(torch.cat(chosen, dim=1), expected)
        assert steps.cached_tokens() == prompt.shape[1] + NEW_TOKENS - 1


@torch.inference_mode()
def test_a_recorded_prefill_is_causal_without_a_mask_as_the_librarys_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bool, bool]] = []
    attend = F.scaled_dot_product_attention

    def noting(query: Any, key: Any, value: Any, attn_mask: Any = None, **settings: Any) -> Any:
        calls.append((key.shape[2], attn_mask is None, settings["is_causal"]))
        return attend(query, key, value, attn_mask=attn_mask, **settings)

    model, prompt = _model(), _prompt()
    expected = _generated(model, prompt)
    steps = StaticSteps(model, prompt, NEW_TOKENS)
    steps.prefill()
    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    # What Transformers asks when it decides whether it may look into a tensor.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    steps.prefill()
    assert set(calls) == {(prompt.shape[1], True, True)}
    assert torch.equal(steps.token[:, 0], expected[:, 0])


def test_models_that_a_graph_cannot_repeat_are_unsupported() -> None:
    windowed = _model("mistral", sliding_window=19)
    with pytest.raises(CellFailure, match="keeps StaticSlidingWindowLayer in its cache"):
        StaticSteps(windowed, _prompt(), NEW_TOKENS)
    config = EffConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=300)
    with pytest.raises(CellFailure, match="EffForCausalLM takes no static cache") as failure:
        StaticSteps(EffForCausalLM(config), _prompt(), NEW_TOKENS)
    assert failure.value.status == "unsupported"


def test_a_compiled_step_chooses_what_generate_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = _model(), _prompt()
    expected = _generated(model, prompt)
    # Traced as on a GPU, in one graph, and run without a compiler, which takes half a minute on a processor.
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, backend, **keys: compile_(model, backend="eager", **keys))
    with torch.inference_mode():
        steps = StaticSteps(model, prompt, NEW_TOKENS, compiled=True)
        steps.prefill()
        chosen = [steps.token.clone()]
        for _ in range(NEW_TOKENS - 1):
            steps.step()
            chosen.append(steps.token.clone())
    assert torch.equal(torch.cat(chosen, dim=1), expected)
    torch.compiler.reset()


def test_a_model_that_cannot_be_compiled_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = _model(), _prompt()
    forward = type(model.model.layers[0].mlp).forward

    def printing(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break("the layer prints")
        return forward(self, x)

    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", printing)
    steps = StaticSteps(model, prompt, NEW_TOKENS, compiled=True)
    steps.prefill()
    with pytest.raises(CellFailure, match="decoding step cannot be compiled") as failure:
        steps.step()
    assert failure.value.status == "unsupported"
    torch.compiler.reset()


def test_only_recorded_steps_are_compiled_and_others_keep_their_spec() -> None:
    shape = {"prompt_tokens": 8, "new_tokens": 4}
    assert "compile" not in Workload.model_validate(shape).model_dump()
    assert Workload.model_validate(shape | {"cuda_graph": True, "compile": True}).model_dump()["compile"]
    with pytest.raises(ValueError, match="compile: true is for decoding by CUDA graphs: add cuda_graph"):
        Workload.model_validate(shape | {"compile": True})


def test_a_processor_has_no_cuda_graphs() -> None:
    with pytest.raises(CellFailure, match="CUDA graphs need an NVIDIA GPU, and this ran on cpu"):
        Graphs(_model(), _prompt(), NEW_TOKENS, "cpu")


def test_the_first_complaint_about_a_recording_is_its_reason() -> None:
    try:
        try:
            try:
                raise KeyError("a library's own, which it handles")
            except KeyError:
                raise RuntimeError("operation not permitted when stream is capturing\nand so on") from None
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture") from None
    except RuntimeError as error:
        assert what_ended_recording(error) == "operation not permitted when stream is capturing"
    assert what_ended_recording(RuntimeError("shapes do not match")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("family", "settings"), FAMILIES)
def test_graphs_choose_what_generate_chooses(family: str, settings: dict[str, Any], compiled: bool) -> None:
    model, prompt = _model(family, "cuda:0", **settings), _prompt().to("cuda:0")
    expected = _generated(model, prompt)
    graphs = Graphs(model, prompt, NEW_TOKENS, "cuda:0", compiled)
    for _ in range(2):
        generation = GraphedDecoding(graphs, NEW_TOKENS).run()
        assert torch.equal(graphs.steps.token[:, 0], expected[:, -1])
        assert generation.generated_tokens == 2 * NEW_TOKENS
        assert len(generation.token_s) == NEW_TOKENS - 1
        prefill = GraphedDecoding(graphs, 1).run()
        assert torch.equal(graphs.steps.token[:, 0], expected[:, 0])
        assert prefill.token_s == []


@pytest.mark.gpu
def test_a_model_that_asks_the_host_is_unsupported_and_still_generates(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = _model(device="cuda:0"), _prompt().to("cuda:0")
    expected = _generated(model, prompt)
    forward, stream = type(model).forward, torch.cuda.current_stream()

    def asking(self: Any, *arguments: Any, **settings: Any) -> Any:
        output = forward(self, *arguments, **settings)
        output.logits.sum().item()
        return output

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", asking)
        with pytest.raises(CellFailure, match="a CUDA graph cannot hold the model's prefill"):
            Graphs(model, prompt, NEW_TOKENS, "cuda:0")
    assert torch.cuda.current_stream() == stream
    assert torch.equal(_generated(model, prompt), expected)


@pytest.mark.gpu
def test_a_generation_that_cached_another_number_of_tokens_is_invalid() -> None:
    graphs = Graphs(_model(device="cuda:0"), _prompt().to("cuda:0"), NEW_TOKENS, "cuda:0")
    graphs.step = graphs.prefill
    with pytest.raises(CellFailure, match="11 tokens are in the cache after a generation that caches 19"):
        GraphedDecoding(graphs, NEW_TOKENS).run()
