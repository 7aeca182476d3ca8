"""The choice among kernels, and the mathematics around them that a CPU can run; the kernels need CUDA."""

import builtins
import sys
import warnings

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.errors import CellFailure
from effllm.models.decoder.attention.core import Sequence, dense_attention
from effllm.models.decoder.kernels import loss, relative, selection, strided
from effllm.models.decoder.kernels.choice import WAYS, absence_of, choosing, failing_as_a_cell, is_fused
from effllm.models.decoder.loss import next_token_loss
from effllm.models.decoder.positions.layers import RelativeBias
from effllm.models.recurrent_kernels import recurrent_kernels
from effllm.training.settings import PretrainingRun
from tests.unit.training.small_models import small_model

from .conftest import small_config

WINDOW = 8


def scores(query: Tensor, key: Tensor, scale: float, seen: Tensor) -> Tensor:
    return (query @ key.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)


def distances(length: int) -> Tensor:
    return torch.arange(length)[:, None] - torch.arange(length)


def gradients_of_part(gradient, query, key, value, logits, context, lse, scale):
    """Of queries, keys, values and scores of a part of a softmax, from the context and log-sum-exp of all of it."""
    p = (logits - lse[..., None]).exp()
    ds = p * (gradient @ value.transpose(2, 3) - (gradient * context).sum(-1, keepdim=True))
    return ds @ key * scale, ds.transpose(2, 3) @ query * scale, p.transpose(2, 3) @ gradient, ds


def dense_band(query, key, value, bias, far, far_lse, scale, stride, block, window):
    """`strided.forward` with a bias, written out."""
    key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], 1) for states in (key, value))
    distance = distances(query.shape[2])
    logits = scores(query, key, scale, (distance >= 0) & (distance < window)) + bias[:, distance.clamp(0, window - 1)]
    lse = logits.logsumexp(-1)
    context = logits.softmax(-1) @ value
    if far is None:
        return context, lse
    near, both = lse[:, :, window:], lse.clone()
    both[:, :, window:] = torch.logaddexp(near, far_lse)
    share = (near - both[:, :, window:]).exp()[..., None]
    rest = share * context[:, :, window:] + (1 - share) * far
    return torch.cat((context[:, :, :window], rest), dim=2), both


def dense_band_gradient(gradient, query, key, value, bias, context, lse, far, scale, stride, block, window):
    """`strided.backward` with a bias, written out."""
    groups, length = key.shape[1], query.shape[2]
    key, value = (states.repeat_interleave(query.shape[1] // groups, 1) for states in (key, value))
    distance = distances(length)
    logits = scores(query, key, scale, (distance >= 0) & (distance < window)) + bias[:, distance.clamp(0, window - 1)]
    of_query, of_key, of_value, ds = gradients_of_part(gradient, query, key, value, logits, context, lse, scale)
    if far is not None:
        of_query[:, :, window:] += far
    of_bias = torch.stack([ds.diagonal(-d, 2, 3).sum((0, 2)) for d in range(min(window, length))], dim=1)
    of_bias = torch.nn.functional.pad(of_bias, (0, window - of_bias.shape[1]))
    shared = (states.unflatten(1, (groups, -1)).sum(2) for states in (of_key, of_value))
    return of_query, *shared, of_bias


def dense_far(query, key, value, scale):
    logits = scores(query, key, scale, distances(query.shape[2]) >= 0)
    return logits.softmax(-1) @ value, logits.logsumexp(-1), ()


def dense_far_gradient(gradient, context, lse, query, key, value, state, scale):
    logits = scores(query, key, scale, distances(query.shape[2]) >= 0)
    return gradients_of_part(gradient, query, key, value, logits, context, lse, scale)[:3]


@pytest.mark.parametrize(("batch", "heads", "kv_heads"), [(2, 4, 2), (1, 3, 3), (3, 4, 1)])
@pytest.mark.parametrize("length", [3, WINDOW, WINDOW + 1, 37])
def test_near_and_far_together_are_the_biased_softmax(batch, heads, kv_heads, length, monkeypatch):
    monkeypatch.setattr(strided, "forward", dense_band)
    monkeypatch.setattr(strided, "backward", dense_band_gradient)
    monkeypatch.setattr(relative, "_far_forward", dense_far)
    monkeypatch.setattr(relative, "_far_backward", dense_far_gradient)
    torch.manual_seed(length)
    shapes = [(batch, h, length, 4) for h in (heads, kv_heads, kv_heads, heads)]
    *leaves, gradient = (torch.randn(shape, requires_grad=True) for shape in shapes)
    bias = RelativeBias(small_config(attention="mha", num_attention_heads=heads, hidden_size=12 * heads))
    torch.nn.init.normal_(bias.table)
    sequence = Sequence(0, torch.arange(length)[None])
    results = []
    for attend in (
        lambda q, k, v: relative.near_far_attention(q, k, v, bias.table, 0.5),
        lambda q, k, v: dense_attention(q, k, v, sequence, bias, 0.5),
    ):
        output = attend(*leaves)
        results.append([output, *torch.autograd.grad(output, [*leaves, bias.table], gradient.detach())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_readers_of_blocks_are_those_that_chose_them_in_segments_of_bounded_length():
    generator = torch.Generator().manual_seed(0)
    length, size, chosen, segment = 100, 8, 3, 16
    count = -(-length // size)
    # Every query reads block 0, as initial blocks are; the others at random, of the future too.
    others = torch.stack([torch.randperm(count - 1, generator=generator)[: chosen - 1] + 1 for _ in range(2 * length)])
    blocks = torch.cat((torch.zeros(2 * length, 1, dtype=torch.long), others), dim=1).view(2, length, chosen)
    readers, parts = selection.readers_of_blocks(blocks, size, segment)
    assert (parts.end - parts.begin).max() <= segment
    for group in range(2):
        for block in range(count):
            found = []
            for index in range(parts.first[group, block], parts.last[group, block]):
                assert parts.block[group, index] == block
                found += readers[group, parts.begin[group, index] : parts.end[group, index]].tolist()
            assert found == [t for t in range(length) if block * size <= t and block in blocks[group, t]]
        of_blocks = (parts.last - parts.first)[group].sum()
        assert (parts.end - parts.begin)[group, of_blocks:].sum() == 0


@pytest.mark.parametrize(
    ("module", "settings", "plain"),
    [("nsa", {"attention": "nsa"}, "gather"), ("relative", {"position": "relative"}, "chunked")],
)
def test_a_cpu_keeps_to_plain_torch_and_imports_no_kernels(module, settings, plain, build, tokens, monkeypatch):
    imported = []
    original = builtins.__import__

    def watch(name, *arguments, **keywords):
        imported.append(name.split(".")[0])
        return original(name, *arguments, **keywords)

    model = build(**settings)
    monkeypatch.setattr(builtins, "__import__", watch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with choosing({}) as used, recurrent_kernels(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(tokens, labels=tokens).loss.backward()
    assert used == {module: {plain: "it needs CUDA, not cpu"}}
    assert not {"triton", "fla", "mamba_ssm", "causal_conv1d"} & set(imported)


@pytest.mark.parametrize("family", ["mamba", "mamba2", "rwkv"])
def test_a_recurrent_family_keeps_to_plain_torch_on_a_cpu_and_fails_if_its_kernel_is_asked_for(family, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = small_model(family).train()
    module = sys.modules[type(model).__module__]
    functions = [name for name, value in vars(module).items() if hasattr(value, "__wrapped__") and name.islower()]
    ways = WAYS[family]
    tokens = torch.ones(1, 5, dtype=torch.long)
    with choosing({}) as used, recurrent_kernels(model):
        model(tokens, labels=tokens).loss.backward()
        # Transformers' own, without the package that it has found or not.
        replaced = [name for name in functions if not hasattr(getattr(module, name), "__wrapped__")]
    assert used == {family: {ways.plain: "it needs CUDA"}}
    assert replaced == [name for name in functions if name.startswith(("causal_conv1d", "mamba"))]
    assert all(hasattr(getattr(module, name), "__wrapped__") for name in functions)
    with choosing({family: ways.fused}), pytest.raises(CellFailure, match=f"of {family} was asked for and cannot run"):
        recurrent_kernels(model).__enter__()


def test_a_package_that_breaks_at_its_import_is_absent_for_the_reason_that_it_gives(tmp_path, monkeypatch):
    for name, text in {
        "kernels_of_another_driver": "raise RuntimeError('0 active drivers ([]). There should be one.')",
        "kernels_of_another_torch": "from torch import a_function_of_another_release",
        "kernels_without_their_compiler": "import compiler_that_nobody_has",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert absence_of("kernels_of_another_driver", "fast") == (
        "fast cannot be imported (RuntimeError: 0 active drivers ([]))"
    )
    said = absence_of("kernels_of_another_torch", "fast")
    assert said.startswith("fast cannot be imported (ImportError: cannot import name 'a_function_of_another_release'")
    said = absence_of("kernels_without_their_compiler", "fast")
    assert said == "fast cannot be imported (ModuleNotFoundError: No module named 'compiler_that_nobody_has')"
    assert absence_of("kernels_that_nobody_has.of_attention", "fast") == "fast is not installed"
    assert absence_of("torch", "torch") is None


def test_a_run_on_a_gpu_records_why_its_package_failed(tmp_path, monkeypatch):
    (tmp_path / "mamba_ssm.py").write_text("raise OSError('libcudart.so.12: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", num_hidden_layers=1, vocab_size=30))
    with choosing({}) as used, pytest.warns(RuntimeWarning, match="libcudart"), recurrent_kernels(model):
        pass
    assert used == {"mamba": {"mambapy": "mamba-ssm cannot be imported (OSError: libcudart.so.12: no such file)"}}


def test_mamba2_says_which_shape_its_kernels_do_not_take(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("effllm.models.recurrent_kernels.absence_of", lambda *names: None)
    shape = {"hidden_size": 24, "num_heads": 3, "head_dim": 16, "n_groups": 1, "state_size": 8}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mamba2", num_hidden_layers=1, vocab_size=30, **shape)
    )
    with choosing({}) as used, pytest.warns(RuntimeWarning, match="mamba2 runs by torch"), recurrent_kernels(model):
        pass
    assert used == {"mamba2": {"torch": "it takes input projections whose width is a multiple of 8, not 115"}}


def test_a_kernel_can_be_asked_for_and_forbidden():
    with choosing({"nsa": "blocks", "relative": "chunked"}) as used:
        assert is_fused("nsa", None)
        assert not is_fused("relative", None)
        assert is_fused("rwkv", None)
        assert not is_fused("mamba", "mamba_ssm cannot be imported")
        with pytest.raises(
            CellFailure, match="blocks of nsa was asked for and cannot run: there is a cache"
        ) as failure:
            is_fused("nsa", "there is a cache")
    assert failure.value.status == "unsupported"
    assert used == {
        "nsa": {"blocks": None},
        "relative": {"chunked": None},
        "rwkv": {"fla": None},
        "mamba": {"mambapy": "mamba_ssm cannot be imported"},
    }
    for wanted in ({"nsa": "near_far"}, {"lost": "auto"}):
        with pytest.raises(ValueError, match="no kernel"), choosing(wanted):
            pass


def test_on_a_gpu_it_says_when_it_falls_back(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with choosing({}), pytest.warns(RuntimeWarning, match="nsa runs by gather, not blocks: triton cannot be imported"):
        is_fused("nsa", "triton cannot be imported")


def test_a_kernel_that_breaks_fails_the_cell_and_lack_of_memory_stays_what_it_is():
    @failing_as_a_cell("of NSA")
    def launch(error):
        raise error

    with pytest.raises(CellFailure, match="the kernel of NSA failed: out of registers") as failure:
        launch(RuntimeError("out of registers\nmore"))
    assert failure.value.status == "unsupported"
    with pytest.raises(torch.OutOfMemoryError):
        launch(torch.OutOfMemoryError("full"))


def test_a_study_names_kernels_of_what_its_architecture_has(tiny):
    run = tiny["pretraining"]["qwen2-1m"] | {"architecture": dict(RELATIVE)}
    assert "kernels" not in PretrainingRun.model_validate(run).model_dump()
    named = PretrainingRun.model_validate(run | {"kernels": {"relative": "chunked"}})
    assert named.model_dump()["kernels"] == {"relative": "chunked"}
    assert PretrainingRun.model_validate(named.model_dump()) == named
    with pytest.raises(ValueError, match="nsa: blocks names a kernel of what this architecture lacks"):
        PretrainingRun.model_validate(run | {"kernels": {"nsa": "blocks"}})
    assert PretrainingRun.model_validate(run | {"kernels": {"loss": "torch_loss"}}).kernels.wanted()
    qwen = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    with pytest.raises(ValueError, match="loss: triton_loss names a kernel of what this architecture lacks"):
        PretrainingRun.model_validate(run | {"architecture": qwen | heads, "kernels": {"loss": "triton_loss"}})


def test_logits_that_the_loss_has_used_up_are_no_longer_read(monkeypatch):
    def forward(logits, targets, scale, ignored):
        lse = logits.detach().logsumexp(-1)
        losses = (lse - logits.gather(1, targets[:, None])[:, 0]).where(targets != ignored, 0)
        probabilities = logits.softmax(-1).scatter_add(1, targets[:, None], torch.full((len(logits), 1), -1.0))
        logits.data.copy_(probabilities * scale)
        return losses

    monkeypatch.setattr(loss, "_forward", forward)
    monkeypatch.setattr(loss, "_scale", lambda x, factor: x.data.mul_(factor))
    leaf, targets = torch.randn((5, 7), requires_grad=True), torch.arange(5)
    logits = leaf * 2
    squares = logits.square().sum()
    value = loss.fused_cross_entropy(logits, targets, 4, -100)
    expected = torch.nn.functional.cross_entropy(leaf * 2, targets, reduction="sum") / 4
    assert torch.allclose(value, expected)
    (gradient,) = torch.autograd.grad(3 * value, leaf, retain_graph=True)
    assert torch.allclose(gradient, torch.autograd.grad(3 * expected, leaf)[0])
    for used_up in (value, squares):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(used_up, leaf)


def test_a_loss_by_the_fused_kernel_is_refused_where_it_cannot_run():
    logits, labels = torch.randn((1, 4, 7)), torch.zeros((1, 4), dtype=torch.long)
    with choosing({}) as used:
        plain = next_token_loss(logits, labels, overwrite=True)
    assert used == {}
    assert plain == torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:])
    with choosing({"loss": "triton_loss"}), pytest.raises(CellFailure, match="cannot run: it needs CUDA, not cpu"):
        next_token_loss(logits, labels, overwrite=True)
    with choosing({"loss": "torch_loss"}) as used:
        assert next_token_loss(logits, labels, overwrite=True) == plain
    assert used == {"loss": {"torch_loss": None}}


RELATIVE = {
    "model_type": "effllm",
    "position": "relative",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
