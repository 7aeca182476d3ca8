"""Cost formulas against built models: parameters one by one, FLOPs as torch counts them, caches and saved tensors."""

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.models import costs
from effllm.models.architectures import (
    Architecture,
    GptNeoxArchitecture,
    Mamba2Architecture,
    MambaArchitecture,
    RwkvArchitecture,
)
from effllm.models.costs.shapes import shape_of
from effllm.models.decoder import EffConfig
from effllm.models.families import model_config
from effllm.study import load_study
from effllm.training.settings import PretrainingRun
from tests.conftest import REPOSITORY

from .conftest import ATTENTIONS, POSITIONS, small_config

# Shapes of the paper's decoder, by size.
PAPER = {
    "0.5b": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "intermediate_size": 4864},
    "3b": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "intermediate_size": 11008},
}

STUDIES = {name: load_study(REPOSITORY / "config" / f"{name}.yaml") for name in ("tiny", "paper")}


def built_parameters(config) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("feed_forward", ["swiglu", "moe"])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("size", PAPER)
def test_parameters_are_exact_at_the_papers_shapes(size, attention, feed_forward):
    key_value_heads = 2 if attention in ("gqa", "nsa") else None
    shape = {**PAPER[size], "num_key_value_heads": key_value_heads, "num_hidden_layers": 2}
    config = EffConfig(**shape, attention=attention, feed_forward=feed_forward)
    assert costs.parameter_count(config).total == built_parameters(config)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_exact_under_every_position(position, tied):
    config = small_config(position=position, tie_word_embeddings=tied)
    assert costs.parameter_count(config).total == built_parameters(config)


def run_config(run: PretrainingRun):
    return model_config(run.architecture, 2048, pad_token_id=0, bos_token_id=0, eos_token_id=0)


@pytest.mark.parametrize("study", STUDIES)
def test_parameters_of_every_run_of_the_studies_are_exact(study):
    for run in STUDIES[study].pretraining.values():
        config = run_config(run)
        assert costs.parameter_count(config).total == built_parameters(config)


def test_a_model_of_32b_is_counted_without_being_built():
    """Qwen2.5-32B: 32.5 billion parameters, 31.0 without embeddings, says its model card; the output head is apart."""
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=5120,
        intermediate_size=27648,
        num_hidden_layers=64,
        num_attention_heads=40,
        num_key_value_heads=8,
        vocab_size=152064,
    )
    count = costs.parameter_count(config)
    assert count.total == 32_763_876_352
    assert (count.total - 2 * count.embedding) / 1e9 == pytest.approx(31.0, abs=0.3)
    assert costs.weight_bytes(config, torch.bfloat16) == 2 * count.total
    assert costs.optimizer_bytes(config) == 8 * count.total
    # Two times 8 heads of 128 in 64 layers.
    assert costs.cache_bytes_per_token(config, torch.bfloat16, 8192) == 2 * 8 * 128 * 64 * 2


def test_active_parameters_leave_the_other_experts_out():
    sparse = costs.parameter_count(small_config(feed_forward="moe", num_experts=8, num_experts_per_tok=2))
    only_chosen = costs.parameter_count(small_config(feed_forward="moe", num_experts=2, num_experts_per_tok=2))
    routers = 2 * 32 * (8 - 2)
    assert sparse.active == only_chosen.total + routers
    assert sparse.total > sparse.active


def transformers_config(model_type: str, **changes):
    return AutoConfig.for_model(
        model_type,
        vocab_size=512,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        **changes,
    )


NEOX = GptNeoxArchitecture(
    model_type="gpt_neox",
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=128,
)
# Each head in a group of its own, and groups of two heads.
MAMBA2 = {
    groups: Mamba2Architecture(
        model_type="mamba2",
        hidden_size=64,
        num_hidden_layers=2,
        head_dim=32,
        state_size=16,
        n_groups=groups,
        chunk_size=32,
    )
    for groups in (4, 2)
}
RWKV = RwkvArchitecture(model_type="rwkv", hidden_size=64, num_hidden_layers=2, max_position_embeddings=128)


def flop_configs() -> dict:
    # MLA's values are as wide as its keys: the CPU kernel pads narrower ones, and multiplies by the padding.
    size = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 160,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "v_head_dim": 12,
    }
    experts = {"feed_forward": "moe", "moe_intermediate_size": 80}
    sparse = {
        "nsa_window": 32,
        "nsa_compression_block": 16,
        "nsa_compression_stride": 8,
        "nsa_selection_block": 16,
        "nsa_selected_blocks": 4,
    }
    configs = {attention: small_config(**size, **sparse, attention=attention) for attention in ATTENTIONS}
    configs |= {f"{a}-moe": small_config(**size, **sparse, attention=a, **experts) for a in ("gqa", "mla", "nsa")}
    configs |= {p: small_config(**size, position=p, max_position_embeddings=128) for p in POSITIONS[1:]}
    configs |= {name: transformers_config(name) for name in ("llama", "qwen2", "phi3")}
    configs |= {
        "mistral": transformers_config("mistral", sliding_window=None),
        "llama-biased": transformers_config("llama", attention_bias=True, mlp_bias=True),
        "gpt_neox": model_config(NEOX, 512),
        "mamba": model_config(MambaArchitecture(model_type="mamba", hidden_size=64, num_hidden_layers=2), 512),
        "mamba2": model_config(MAMBA2[2], 512),
        "rwkv": model_config(RWKV, 512),
    }
    return configs


FLOP_CONFIGS = flop_configs()


def counted_flops(model, run) -> int:
    """FLOPs of matrix products as torch counts them; convolutions are no matrix products here."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(model)
    counts = counter.get_flop_counts()["Global"]
    return sum(value for op, value in counts.items() if "convolution" not in str(op))


@pytest.fixture(params=FLOP_CONFIGS)
def counted(request):
    config = FLOP_CONFIGS[request.param]
    torch.manual_seed(0)
    return config, AutoModelForCausalLM.from_config(config)


def test_parameters_of_the_counted_models_are_exact(counted):
    config, model = counted
    assert costs.parameter_count(config).total == sum(weight.numel() for weight in model.parameters())


def beyond_the_formula(config, length: int) -> int:
    """Forward FLOPs of Transformers' plain Mamba-2 that need not be: C B for each head, the states by a product."""
    if config.model_type != "mamba2":
        return 0
    chunks = -(-length // config.chunk_size)
    again = 2 * config.chunk_size * (config.num_heads - config.n_groups) * config.state_size
    states = 2 * (chunks + 1) ** 2 * config.expand * config.hidden_size * config.state_size
    return config.num_hidden_layers * (chunks * config.chunk_size * again + states)


def test_training_flops_agree_with_the_counter(counted):
    config, model = counted
    tokens = torch.randint(1, 512, (1, 128))

    def step(model):
        model.train()(tokens, labels=tokens, use_cache=False).loss.backward()

    expected = costs.training_flops(config, 128) + 3 * beyond_the_formula(config, 128)
    assert counted_flops(model, step) == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize(("groups", "length"), [(4, 256), (2, 72)])
def test_a_part_of_a_chunk_costs_mamba2_a_whole_one(groups, length):
    config = model_config(MAMBA2[groups], 512)
    model = AutoModelForCausalLM.from_config(config)
    counted = counted_flops(model, lambda model: model(torch.ones(1, length, dtype=torch.long)))
    assert counted == pytest.approx(costs.forward_flops(config, length), rel=0.06)
    expected = costs.forward_flops(config, length) + beyond_the_formula(config, length)
    assert counted == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_decoding_flops_agree_with_the_counter(counted):
    config, model = counted
    tokens = torch.randint(1, 512, (1, 96))
    model.eval()
    state = model(tokens[:, :88], use_cache=True)
    name = next(name for name in ("state", "cache_params", "past_key_values") if state.get(name) is not None)
    past = {name: state[name]}

    def step(model):
        # As many steps as NSA has between two compressed tokens.
        for index in range(88, 96):
            model(tokens[:, index : index + 1], use_cache=True, **past)

    expected = sum(costs.decoding_flops(config, context) for context in range(89, 97))
    assert counted_flops(model, step) == pytest.approx(expected, rel=0.002)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in FLOP_CONFIGS if name not in ("rwkv", "mamba", "mamba2")])
def test_cache_bytes_are_those_of_the_real_cache(name):
    config = FLOP_CONFIGS[name]
    model = AutoModelForCausalLM.from_config(config).eval()
    output = model(torch.randint(1, 512, (1, 90)), use_cache=True)
    for _ in range(6):
        output = model(torch.ones(1, 1, dtype=torch.long), past_key_values=output.past_key_values, use_cache=True)
    held = 0
    for layer in output.past_key_values.layers:
        held += sum(value.nbytes for value in vars(layer).values() if isinstance(value, torch.Tensor))
    assert costs.cache_bytes(config, 96, torch.float32) == held


@torch.no_grad()
def test_state_bytes_are_those_of_the_real_states():
    tokens = torch.randint(1, 512, (1, 40))
    config = FLOP_CONFIGS["rwkv"]
    states = AutoModelForCausalLM.from_config(config).eval()(tokens, use_cache=True).state
    assert costs.cache_bytes(config, 40, torch.float32) == sum(state.nbytes for state in states)
    for config in (FLOP_CONFIGS["mamba"], FLOP_CONFIGS["mamba2"]):
        cache = AutoModelForCausalLM.from_config(config).eval()(tokens, use_cache=True).cache_params
        held = 0
        for layer in cache.layers:
            states = [*layer.conv_states.values(), *layer.recurrent_states.values()]
            held += sum(state.nbytes for state in states)
        assert costs.cache_bytes(config, 40, torch.float32) == held


def test_latents_cache_less_than_keys_and_values():
    sizes = {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12}
    latent = costs.cache_bytes_per_token(EffConfig(**sizes, attention="mla"), torch.bfloat16, 8192)
    full = costs.cache_bytes_per_token(EffConfig(**sizes, attention="mha"), torch.bfloat16, 8192)
    assert latent == (1536 // 8 + 64) * 28 * 2
    assert full == 2 * 1536 * 28 * 2


def saved_bytes(model, tokens) -> int:
    """Bytes of the distinct storages, weights aside, that autograd keeps between forward and backward."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens, labels=tokens, use_cache=False).loss
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "mha"},
        {"attention": "gqa", "num_key_value_heads": 2},
        {"attention": "gqa", "num_key_value_heads": 2, "feed_forward": "moe", "moe_intermediate_size": 256},
        # Values as wide as keys, so that the CPU kernel needs no padding.
        {"attention": "mla", "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64},
    ],
    ids=["mha", "gqa", "moe", "mla"],
)
def test_activation_bytes_are_what_autograd_keeps(changes, checkpointing):
    config = EffConfig(
        vocab_size=300, hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=4, **changes
    )
    model = AutoModelForCausalLM.from_config(config).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    tokens = torch.randint(0, 300, (2, 256))
    expected = costs.activation_bytes(config, 2, 256, torch.float32, checkpointing)
    if checkpointing:
        # When the forward pass ends, no layer has been recomputed yet.
        expected -= costs.describe(config).layer.saved_elements * 2 * 256 * 4
    assert saved_bytes(model, tokens) == pytest.approx(expected, rel=0.05)


def test_a_sliding_window_is_refused():
    with pytest.raises(ValueError, match="sliding_window 4096"):
        costs.parameter_count(AutoConfig.for_model("mistral"))


def test_an_unknown_architecture_is_named():
    with pytest.raises(ValueError, match="model_type gpt2 has no cost formulas"):
        costs.parameter_count(AutoConfig.for_model("gpt2"))


@pytest.mark.parametrize("size", ["0.3m", "0.6m", "1m"])
def test_tiny_families_are_within_a_tenth_of_each_other(size):
    families = ("qwen2.5", "mamba", "mamba2", "pythia", "rwkv")
    tiny = STUDIES["tiny"].pretraining
    runs = [tiny[f"{family}-{size}"] for family in families if f"{family}-{size}" in tiny]
    assert len(runs) >= 4
    totals = [costs.parameter_count(run_config(run)).total for run in runs]
    assert max(totals) <= 1.1 * min(totals)


SHAPES = {
    "llama": {
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    "qwen2": {"intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2},
    "phi3": {"intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 4},
    "gpt_neox": {"intermediate_size": 256, "num_attention_heads": 4},
    "mamba": {},
    "mamba2": {"head_dim": 16, "n_groups": 2, "state_size": 24},
    "rwkv": {},
}
SHAPES |= {f"effllm-{a}": {"attention": a, "intermediate_size": 160, "num_attention_heads": 4} for a in ATTENTIONS}
SHAPES["effllm-moe"] = {"feed_forward": "moe", "intermediate_size": 160, "num_attention_heads": 4}
SHAPES["effllm-learned"] = {"position": "learned", "intermediate_size": 160, "num_attention_heads": 4}


@pytest.mark.parametrize("name", SHAPES)
def test_a_studys_shape_costs_what_its_configuration_costs(name):
    """The terms that are filled in without Transformers are those of the configurations that Transformers makes."""
    family = name.partition("-")[0]
    longest = {} if family in ("mamba", "mamba2") else {"max_position_embeddings": 256}
    given = {"model_type": family, "hidden_size": 64, "num_hidden_layers": 2, **longest, **SHAPES[name]}
    architecture = TypeAdapter(Architecture).validate_python(given)
    config, shape = model_config(architecture, 512), shape_of(architecture, 512)
    assert costs.parameter_count(shape) == costs.parameter_count(config)
    assert costs.training_flops(shape, 128) == costs.training_flops(config, 128)
    kept = [costs.activation_bytes(terms, 2, 128, torch.bfloat16) for terms in (shape, config)]
    caches = [costs.cache_bytes(terms, 128, torch.bfloat16) for terms in (shape, config)]
    assert kept[0] == kept[1] and caches[0] == caches[1]
