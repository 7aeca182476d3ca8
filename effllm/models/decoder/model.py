"""The decoder: Qwen2.5's backbone around a choice of attention, position and feed-forward, as a Transformers model."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast

from effllm.models.decoder.attention import ATTENTION
from effllm.models.decoder.attention.core import Sequence
from effllm.models.decoder.config import EffConfig
from effllm.models.decoder.feed_forward import FEED_FORWARD
from effllm.models.decoder.feed_forward.moe_layer import load_balancing_loss
from effllm.models.decoder.loss import IGNORED, next_token_loss
from effllm.models.decoder.normalization import RMSNorm
from effllm.models.decoder.positions import POSITIONS


class EffDecoderLayer(GradientCheckpointingLayer):
    """x + Attention(RMSNorm(x)), then x + FeedForward(RMSNorm(x))."""

    def __init__(self, config: EffConfig, layer_idx: int):
        super().__init__()
        self.self_attn = ATTENTION[config.attention].build(config, layer_idx)
        self.mlp = FEED_FORWARD[config.feed_forward].build(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, sequence: Sequence, past_key_values: Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[batch, length, hidden] to the same shape, and the router's logits where there is a router."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), sequence, past_key_values)
        output = self.mlp(self.post_attention_layernorm(hidden))
        update, router_logits = output if isinstance(output, tuple) else (output, None)
        return hidden + update, router_logits


class EffPreTrainedModel(PreTrainedModel):
    """Initialisation and what Transformers must know of the model.

    A module with parameters that are not those of a linear layer, an embedding or a norm draws them in its own method
    `draw_parameters(std)`.
    """

    config: EffConfig
    config_class = EffConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EffDecoderLayer"]  # noqa: RUF012  (as Transformers declares it)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012  (the same)
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        draw_parameters = getattr(module, "draw_parameters", None)
        if draw_parameters is not None:
            draw_parameters(self.config.initializer_range)


class EffModel(EffPreTrainedModel):
    """Token embedding, positions, layers and final norm."""

    def __init__(self, config: EffConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.position_embedding = POSITIONS[config.position].embedding(config)
        self.layers = nn.ModuleList([EffDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: object,
    ) -> MoeModelOutputWithPast:
        """Final hidden states [batch, length, hidden] of input_ids [batch, length].

        `attention_mask` is [batch, cached + length], 1 for tokens and 0 for padding. Raises ValueError for padding
        between tokens where the attention takes none, and for positions beyond a learned table.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if not use_cache:
            past_key_values = None
        elif past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        sequence = self._sequence(hidden, attention_mask, position_ids, past_key_values)
        if self.position_embedding is not None:
            hidden = self.position_embedding(hidden, sequence.position_ids)

        states, router_logits = [hidden], []
        for layer in self.layers:
            hidden, logits = layer(hidden, sequence, past_key_values=past_key_values)
            if logits is not None:
                router_logits.append(logits)
            if output_hidden_states:
                states.append(hidden)
        hidden = self.norm(hidden)
        return MoeModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=(*states[:-1], hidden) if output_hidden_states else None,
            router_logits=tuple(router_logits) or None,
        )

    def _sequence(
        self, hidden: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None
    ) -> Sequence:
        config, length = self.config, hidden.shape[1]
        attention, position = ATTENTION[config.attention], POSITIONS[config.position]
        if cache is not None:
            attention.prepare_cache(cache, config.num_hidden_layers)
        first = 0 if cache is None else int(cache.get_seq_length())
        position.check_length(config, first + length)
        is_padded = attention_mask is not None and attention_mask.dim() == 2 and not bool(attention_mask.all())
        padding_mask = attention_mask if is_padded else None
        mask: Tensor | None = None
        is_causal_only = cache is None and attention_mask is None and position_ids is None
        if attention.uses_mask and position.uses_mask and not is_causal_only:
            # Given position ids without a mask may mark packed documents, which only this mask can keep apart. Where
            # causality is all there is, Transformers before 5.23 writes T x T of it out while torch compiles.
            made = create_causal_mask(config, hidden, attention_mask, cache, position_ids)
            # FlexAttention alone has masks of another kind.
            assert made is None or isinstance(made, Tensor)
            mask = made
        if position_ids is None:
            position_ids = torch.arange(first, first + length, device=hidden.device)[None]
            if padding_mask is not None:
                position_ids = (padding_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        return Sequence(
            first_position=first,
            position_ids=position_ids,
            angles=position.angles(config, position_ids, attention.rotary_dim(config)),
            mask=mask,
            key_mask=None if padding_mask is None else padding_mask.bool(),
            padding=(
                None
                if padding_mask is None or not attention.uses_padding
                else _left_padding(padding_mask, config.attention)
            ),
        )


class EffForCausalLM(EffPreTrainedModel, GenerationMixin):
    """The decoder with its language-modelling head, tied to the embedding if the configuration says so."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  (as Transformers declares it)

    def __init__(self, config: EffConfig):
        super().__init__(config)
        self.model = EffModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast | tuple:
        """Logits [batch, length, vocabulary], and the mean loss in nats per token if `labels` are given.

        Labels are shifted here. With experts the loss includes router_aux_loss_coef times the load-balancing loss;
        where `num_items_in_batch` says that the batch is one of several that are accumulated, that loss has this
        batch's share of the tokens as its weight. `skip_logits` leaves the logits out of the result: Accelerate would
        copy them to float32, gigabytes at 150,000 words.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = auxiliary = None
        if outputs.router_logits is not None and (labels is not None or output_router_logits):
            padding = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
            auxiliary = load_balancing_loss(outputs.router_logits, self.config.num_experts_per_tok, padding)
        if labels is not None:
            items = kwargs.get("num_items_in_batch")
            loss = next_token_loss(logits, labels, items, overwrite=skip_logits)
            if auxiliary is not None:
                share = _share_of_batch(labels, items)
                loss = loss + self.config.router_aux_loss_coef * share * auxiliary
        result = MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=auxiliary,
            logits=None if skip_logits else logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            router_logits=outputs.router_logits if output_router_logits else None,
        )
        return result if return_dict is not False else result.to_tuple()


def _share_of_batch(labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | float:
    """The part of an accumulated batch's target tokens that these labels hold."""
    return 1.0 if num_items_in_batch is None else (labels[..., 1:] != IGNORED).sum() / num_items_in_batch


def _left_padding(attention_mask: Tensor, attention: str) -> Tensor:
    """[batch]: zeros before the first one. Zeros after the last one need nothing: causality hides them."""
    mask = attention_mask.long()
    if bool((mask.diff(dim=-1) == 1).sum(dim=-1).add(mask[:, 0]).gt(1).any()):
        raise ValueError(f"attention {attention} takes padding at the ends only: attention_mask has zeros between ones")
    return mask.argmax(dim=-1)


AutoModelForCausalLM.register(EffConfig, EffForCausalLM)
