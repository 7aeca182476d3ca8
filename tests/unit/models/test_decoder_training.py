"""Every decoder learns, alone and under Transformers' Trainer."""

import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

from effllm.models.decoder import EffConfig, EffForCausalLM

from .conftest import ATTENTIONS, POSITIONS, small_config

COMBINATIONS = [(a, p, "swiglu") for a in ATTENTIONS for p in POSITIONS] + [(a, "rope", "moe") for a in ATTENTIONS]


@pytest.mark.parametrize(("attention", "position", "feed_forward"), COMBINATIONS)
def test_a_fixed_batch_is_learned(attention, position, feed_forward, tokens):
    set_seed(0)
    config = small_config(
        attention=attention, position=position, feed_forward=feed_forward, initializer_range=0.02, pad_token_id=None
    )
    model = EffForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        loss = model(tokens, labels=tokens).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] == pytest.approx(torch.tensor(97.0).log().item(), abs=0.2)
    assert losses[-1] < 0.25 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "feed_forward"), [("gqa", "moe"), ("mla", "swiglu"), ("nsa", "swiglu")])
def test_a_training_step_compiles_without_graph_breaks(attention, feed_forward, build, tokens):
    model = build(attention=attention, feed_forward=feed_forward).train()
    expected = model(tokens, labels=tokens).loss
    torch._dynamo.reset()
    loss = torch.compile(model, backend="aot_eager", fullgraph=True)(tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_no_causal_mask_is_written_out_in_training_compiled_or_not(attention, build, tokens, monkeypatch):
    """A mask would keep SDPA off its flash kernel, and takes T x T bytes."""
    masks = []
    original = torch.nn.functional.scaled_dot_product_attention

    def attention_with_mask(*arguments, attn_mask=None, **options):
        masks.append(attn_mask)
        return original(*arguments, attn_mask=attn_mask, **options)

    def graph(module, inputs):
        calls = [node for node in module.graph.nodes if node.target is original]
        masks.extend(node.kwargs.get("attn_mask") for node in calls)
        return module.forward

    model = build(attention=attention).train()
    torch._dynamo.reset()
    torch.compile(model, backend=graph, fullgraph=True)(tokens, labels=tokens, use_cache=False)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention_with_mask)
    model(tokens, labels=tokens, use_cache=False)
    assert masks == [None] * 2 * model.config.num_hidden_layers


def test_the_loss_comes_without_logits_where_nobody_wants_them(build, tokens):
    model = build().train()
    whole, bare = model(tokens, labels=tokens), model(tokens, labels=tokens, skip_logits=True)
    assert bare.logits is None
    torch.testing.assert_close(bare.loss, whole.loss, rtol=0, atol=0)


def test_products_under_autocast_share_one_cast_of_their_input(build, tokens):
    model = build().train()
    norm = model.model.layers[0].input_layernorm
    hidden = torch.randn(2, 3, model.config.hidden_size)
    with torch.autocast("cpu", torch.bfloat16):
        shared = norm(hidden)
    assert shared.dtype == torch.bfloat16
    torch.testing.assert_close(shared, norm(hidden).bfloat16(), rtol=0, atol=0)


def train(model: EffForCausalLM, tokens: torch.Tensor, directory, batch: int, accumulate: int) -> list[torch.Tensor]:
    arguments = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        max_steps=2,
        learning_rate=0.1,
        optim="sgd",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    return [weight.detach().clone() for weight in model.parameters()]


@pytest.mark.parametrize("attention", ["gqa", "mla", "nsa"])
def test_the_trainer_accumulates_to_the_gradient_of_the_whole_batch(attention, build, tokens, tmp_path):
    batch = torch.cat((tokens, tokens.flip(0)))
    whole = train(build(attention=attention), batch, tmp_path, batch=4, accumulate=1)
    parts = train(build(attention=attention), batch, tmp_path, batch=2, accumulate=2)
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-5)
    assert not torch.equal(whole[0], next(build(attention=attention).parameters()))


def test_the_default_configuration_is_valid_and_survives_the_disk(tmp_path):
    """Transformers builds the default configuration to see what to write."""
    EffConfig(attention="mla", hidden_size=64, num_attention_heads=4).save_pretrained(tmp_path)
    loaded = EffConfig.from_pretrained(tmp_path)
    assert (loaded.attention, loaded.kv_lora_rank, loaded.num_key_value_heads) == ("mla", 8, 4)
    assert EffConfig().num_key_value_heads == 2
