"""Greedy decoding that is the same for every model: what its files ask of `generate` is noted, and left out.

`generate` takes whatever a call leaves open from `model.generation_config`, also where a call brings a whole
configuration of its own: beams, penalties, forced and suppressed tokens, stop strings, kinds of cache. That object is
read from generation_config.json, or without one from the generation keys that older config.json files have. So the
object itself is replaced.
"""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from effllm.models.checkpoint.files import read_object
from effllm.models.checkpoint.ids import GENERATION_CONFIG
from effllm.models.text import text_config

# Notes about the file, and ids of which greedy decoding after a prompt makes no use.
_WITHOUT_EFFECT = ("transformers_version", "bos_token_id", "pad_token_id", "_from_model_config")
# Of the model's configuration, not of its generation: each makes every forward pass keep and return more.
_EXTRA_OUTPUTS = ("output_attentions", "output_hidden_states")


def greedy_config(eos_token_id: int | list[int] | None, pad_token_id: int | None, **lengths: int) -> GenerationConfig:
    """Greedy decoding with a cache; `lengths` are `GenerationConfig`'s own, such as `max_new_tokens`."""
    pad = 0 if pad_token_id is None else pad_token_id
    return GenerationConfig(do_sample=False, use_cache=True, eos_token_id=eos_token_id, pad_token_id=pad, **lengths)


def decode_greedily(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, ends_turns: bool = False
) -> dict[str, Any]:
    """Let `model` decode greedily up to the tokenizer's end-of-text token, whatever its files say.

    Random weights have no tokenizer, and no text of theirs ends. `ends_turns`: or up to an end that its files name,
    which in a conversation may be that of a turn (Phi-3's).
    Returns what the files said otherwise, as JSON types by key; {} where nothing was ignored.
    """
    eos: Any = tokenizer.eos_token_id if tokenizer else None
    pad = eos if tokenizer is None or tokenizer.pad_token_id is None else tokenizer.pad_token_id
    written = _written(Path(model.name_or_path)) if model.name_or_path else {}
    asked = {**model.generation_config.to_dict(), **written}
    ends = list(dict.fromkeys([eos, *_ids(asked.get("eos_token_id"))])) if ends_turns else [eos]
    model.generation_config = greedy_config(ends if len(ends) > 1 else eos, pad)
    ignored = {key: value for key, value in asked.items() if _differs(key, value, ends)}
    for config in (model.config, text_config(model.config)):
        for key in _EXTRA_OUTPUTS:
            if getattr(config, key, False):
                ignored[key] = True
                setattr(config, key, False)
    return {key: _plain(value) for key, value in sorted(ignored.items())}


def _written(checkpoint: Path) -> dict[str, Any]:
    """What generation_config.json says, also where Transformers refuses a setting and the model has none of them."""
    file = checkpoint / GENERATION_CONFIG
    return read_object(file, str(checkpoint)) if file.is_file() else {}


def _ids(value: Any) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _differs(key: str, value: Any, ends: list[int]) -> bool:
    """Whether a setting of the model's asks for anything but what greedy decoding does by itself."""
    if value is None or key in _WITHOUT_EFFECT or key.startswith("_"):
        return False
    if key in _EXTRA_OUTPUTS:
        # Transformers writes these as false into every file that it saves.
        return bool(value)
    if key == "eos_token_id":
        return not {*_ids(value)} <= {*ends}
    if key in (plain := GenerationConfig().to_dict()) and value == plain[key]:
        return False
    defaults = GenerationConfig._get_default_generation_params()
    return not (key in defaults and value == defaults[key])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
