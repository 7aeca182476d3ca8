"""The tokenizer of a model, against the rows of the model's input table."""

from pathlib import Path

from transformers import AutoTokenizer

from effllm.errors import UserError, reason_of
from effllm.models.checkpoint.files import TOKENIZER_CONFIG, read_object
from effllm.results.model import TokenizerRecord

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# A text model may come with the tokenizer of its siblings, which mark images and sounds by tokens without a row.
_MARKS = ("image", "audio", "video", "vision", "boi", "eoi", "boa", "eoa")
_SAMPLE = "The 3 quick brown foxes jump over lazy dogs."


def inspect_tokenizer(directory: Path, rows: int, where: str) -> TokenizerRecord:
    """What the tokenizer is; `UserError` where it cannot be read, encodes nothing, or names ids beyond `rows`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        ids = tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
        with_marks = tokenizer(_SAMPLE)["input_ids"]
        words: dict[str, int] = tokenizer.get_vocab()
        roles = {role: getattr(tokenizer, f"{role}_id") for role in _ROLES}
    # Everything that tokenizers and Transformers raise on files that they cannot read, which is nearly every type.
    except Exception as error:
        missing = "" if (directory / "tokenizer.json").exists() else "there is no tokenizer.json, and "
        raise UserError(
            f"{where}: {missing}the tokenizer cannot be loaded ({reason_of(error)}); save it with save_pretrained."
        ) from error
    if not ids:
        raise UserError(f"{where}: the tokenizer makes no token of text; save it again from where it is whole.")
    if roles["eos_token"] is None:
        raise UserError(
            f"{where}: the tokenizer has no end-of-text token; name one of its tokens as eos_token in "
            f"{TOKENIZER_CONFIG}."
        )
    for role, id in roles.items():
        if id is not None and not 0 <= id < rows:
            raise UserError(
                f"{where}: the tokenizer's {role} {str(getattr(tokenizer, role))[:40]!r} has the id {id}, and the "
                f"model has {rows} rows of embeddings; name another token, or resize the embeddings "
                "(resize_token_embeddings)."
            )
    marks = _marks(directory, where)
    beyond = sorted(word for word, id in words.items() if id >= rows)
    if unmarked := [word for word in beyond if word not in marks]:
        raise UserError(
            f"{where}: the tokenizer gives {unmarked[0][:40]!r} the id {words[unmarked[0]]}, and the model has {rows} "
            "rows of embeddings; take the token out, or resize the embeddings (resize_token_embeddings)."
        )
    return TokenizerRecord(
        kind=type(tokenizer).__name__,
        words=len(words),
        bos_token_id=roles["bos_token"],
        eos_token_id=roles["eos_token"],
        pad_token_id=roles["pad_token"],
        adds_bos=roles["bos_token"] is not None and with_marks[:1] == [roles["bos_token"]],
        has_chat_template=tokenizer.chat_template is not None,
        beyond_embeddings=beyond,
    )


def _marks(directory: Path, where: str) -> set[str]:
    """Tokens that the tokenizer's configuration names as marks of images, sounds or films."""
    content = read_object(directory / TOKENIZER_CONFIG, where)
    extra = content.get("extra_special_tokens")
    named = {**(extra if isinstance(extra, dict) else {}), **content}
    tokens = (value for key, value in named.items() if key.endswith("_token") and key.removesuffix("_token") in _MARKS)
    return {token["content"] if isinstance(token, dict) else str(token) for token in tokens}
