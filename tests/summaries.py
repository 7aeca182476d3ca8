"""Summaries of artifacts that are not there, for tests of what reads nothing else of them."""

from effllm.results.model import ModelRecord, ModelSummary


def model_summary(weights: dict[str, int], size: int) -> str:
    """The text of model.json: numbers of weights by type, and their bytes."""
    record = ModelRecord(
        architecture="LlamaForCausalLM",
        model_type="llama",
        weights=weights,
        bytes=size,
        tied_head=False,
        context_length=4096,
        embedding_rows=32_000,
        is_composite=False,
        tokenizer=None,
    )
    return ModelSummary(model=record, source={}, unscored=None).to_json()
