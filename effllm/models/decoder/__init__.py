"""The decoder whose attention, position and feed-forward can be exchanged, known to Transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from effllm.models.decoder.config import EffConfig
from effllm.models.decoder.model import EffForCausalLM

__all__ = ["EffConfig", "EffForCausalLM"]

AutoConfig.register(EffConfig.model_type, EffConfig)
AutoModelForCausalLM.register(EffConfig, EffForCausalLM)
