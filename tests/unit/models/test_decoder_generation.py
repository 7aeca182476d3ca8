"""Every attention under every position: causal, the same with a cache, with left padding and in generation."""

import pytest
import torch

from .conftest import ATTENTIONS, POSITIONS, small_config

COMBINATIONS = [(attention, position) for attention in ATTENTIONS for position in POSITIONS]
TOLERANCE = {"rtol": 0, "atol": 5e-5}


@pytest.fixture(params=COMBINATIONS, ids=["-".join(pair) for pair in COMBINATIONS])
def model(request, build):
    attention, position = request.param
    return build(attention=attention, position=position)


@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(model, tokens):
    full = model(tokens).logits
    output = model(tokens[:, :17], use_cache=True)
    pieces = [output.logits]
    for index in range(17, 24):
        output = model(tokens[:, index : index + 1], past_key_values=output.past_key_values, use_cache=True)
        pieces.append(output.logits)
    output = model(tokens[:, 24:], past_key_values=output.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([*pieces, output.logits], dim=1), full, **TOLERANCE)


@torch.no_grad()
def test_no_future_token_influences_a_past_logit(model, tokens):
    full = model(tokens).logits
    for position in (3, 20):
        changed = tokens.clone()
        changed[:, position:] = (changed[:, position:] + 1) % 97
        logits = model(changed).logits
        torch.testing.assert_close(logits[:, :position], full[:, :position], rtol=0, atol=5e-6)
        assert (logits[:, position] - full[:, position]).abs().max() > 1e-2


@torch.no_grad()
def test_left_padding_changes_no_logit_and_no_generated_token(model, tokens):
    mask = torch.ones_like(tokens)
    mask[1, :7] = 0
    padded = tokens * mask
    alone = tokens[1:, 7:]
    logits = model(padded, attention_mask=mask).logits
    torch.testing.assert_close(logits[1, 7:], model(alone).logits[0], **TOLERANCE)
    torch.testing.assert_close(logits[0], model(tokens[:1]).logits[0], **TOLERANCE)

    greedy = {"max_new_tokens": 5, "do_sample": False}
    generated = model.generate(padded, attention_mask=mask, **greedy)
    torch.testing.assert_close(generated[1, 33:], model.generate(alone, **greedy)[0, 26:])
    torch.testing.assert_close(generated[0, 33:], model.generate(tokens[:1], **greedy)[0, 33:])


def test_every_parameter_is_trained(model, tokens):
    model.train()
    model(tokens, labels=tokens).loss.backward()
    untrained = [name for name, weight in model.named_parameters() if not weight.grad.abs().sum() > 0]
    assert untrained == []


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradient_checkpointing_changes_no_gradient(attention, build, tokens):
    gradients = []
    for checkpointed in (False, True):
        model = build(attention=attention, feed_forward="moe").train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(tokens, labels=tokens).loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    torch.testing.assert_close(*gradients)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_beam_search_reorders_the_cache(attention, build, tokens):
    model = build(attention=attention)
    search = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False}
    with_cache = model.generate(tokens, use_cache=True, **search)
    torch.testing.assert_close(with_cache, model.generate(tokens, use_cache=False, **search))


@torch.no_grad()
def test_a_relative_bias_beyond_one_chunk_equals_one_chunk(build, tokens, monkeypatch):
    model = build(position="relative")
    whole = model(tokens).logits
    monkeypatch.setattr("effllm.models.decoder.attention.core.BIAS_CHUNK", 5)
    torch.testing.assert_close(model(tokens).logits, whole, **TOLERANCE)


def test_relative_bias_follows_its_definition(build):
    bias = build(position="relative").model.layers[0].self_attn.relative_bias
    rows = bias.rows(first_query=7, queries=5, keys=12)
    for row in range(5):
        for key in range(12):
            distance = 7 + row - key
            expected = bias.table[:, min(distance, 8)] if distance >= 0 else torch.full((4,), -torch.inf)
            torch.testing.assert_close(rows[:, row, key], expected)


@torch.no_grad()
def test_learned_positions_end_with_their_table(build):
    model = build(position="learned")
    with pytest.raises(ValueError, match="max_position_embeddings 64"):
        model(torch.ones(1, 65, dtype=torch.long))


@torch.no_grad()
def test_sparse_attention_refuses_holes_in_the_mask(build, tokens):
    mask = torch.ones_like(tokens)
    mask[0, 5] = 0
    with pytest.raises(ValueError, match="zeros between ones"):
        build(attention="nsa")(tokens, attention_mask=mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "gqa", "num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"attention": "mqa", "num_key_value_heads": 2}, "leave the key out"),
        ({"attention": "linear"}, "none of mha"),
        ({"hidden_size": 30}, "hidden_size 30"),
        ({"attention": "nsa", "nsa_compression_block": 5}, "nsa_compression_block 5"),
        ({"attention": "nsa", "nsa_initial_blocks": 3}, "nsa_selected_blocks 3"),
        ({"feed_forward": "moe", "num_experts_per_tok": 5}, "num_experts_per_tok 5"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)
