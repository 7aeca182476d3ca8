"""The terms of the text model in a configuration, which composite ones (text, vision, audio) keep one level down."""

from typing import Any


def text_config(config: Any) -> Any:
    """The configuration that words, positions and layers are in: of a composite one its text decoder's.

    Shapes that the study itself made up have no such levels.
    """
    of_text = getattr(config, "get_text_config", None)
    return of_text(decoder=True) if of_text else config


def is_composite(config: Any) -> bool:
    """Whether the model holds more than its text decoder, such as a vision tower."""
    return text_config(config) is not config


def context_length(config: Any) -> int | None:
    """Longest sequence in tokens, or None where nothing bounds it, as in a recurrent model.

    This is `max_position_embeddings`, by whatever name the family has for it. Scaled rotary positions reach as far as
    this says; the length before scaling, which their parameters hold, is not the bound.
    """
    text = text_config(config)
    for key in ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx", "seq_length"):
        if isinstance(length := getattr(text, key, None), int):
            return length
    return None
