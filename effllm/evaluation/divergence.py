"""How far a model's next-token distributions are from those of the same weights in another precision.

Both models read the same tokens, the windows in which the harness scores the text, and the same positions of both are
compared in float64: between two 16-bit types the divergence is of the size of float32's rounding. Documents are
independent and tokens of one are not, so errors are those of sums over documents.
"""

import json
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from effllm.intervals import ratio_standard_error, student, sums_by_cluster
from effllm.results.evaluation import Divergence

if TYPE_CHECKING:
    from effllm.evaluation.metered import MeteredLM

# Logits that are in float64 at a time, of each model.
_CHUNK = 2**23


@dataclass(frozen=True)
class Sums:
    """What adds up over the scored tokens of a document, in nats where it is an information.

    kl: Kullback-Leibler divergence of the model's next-token distribution from the reference's. nll, reference_nll: of
    the token that follows. same_top: 1 where both hold the same token for the likeliest.
    """

    kl: float
    nll: float
    reference_nll: float
    same_top: float
    tokens: int


def compare_documents(lm: "MeteredLM", reference: Any, documents: Sequence[str]) -> list[Sums]:
    """The sums of each document. FloatingPointError where a logit is NaN."""
    found = []
    with torch.inference_mode():
        for document in documents:
            windows = _windows(lm, document)
            parts = [_compare(lm.model, reference, context, scored, lm.device) for context, scored in windows]
            totals = [math.fsum(column) for column in zip(*map(astuple, parts), strict=True)] or [0.0] * 5
            found.append(Sums(totals[0], totals[1], totals[2], totals[3], int(totals[4])))
    return found


def summarize_divergence(documents: Sequence[Sums], clusters: Sequence[Hashable], reference: str) -> Divergence:
    """Means per token and their errors over clusters of documents; `reference` is the id of the precision.

    FloatingPointError where a perplexity is beyond what a number holds.
    """
    scored = [(sums, cluster) for sums, cluster in zip(documents, clusters, strict=True) if sums.tokens]
    tokens = sum(sums.tokens for sums, _ in scored)
    one = "one document has no spread"
    kl, kl_error, kl_reach = _mean([(sums.kl, sums.tokens, cluster) for sums, cluster in scored])
    change, change_error, reach = _mean(
        [(sums.nll - sums.reference_nll, sums.tokens, cluster) for sums, cluster in scored]
    )
    return Divergence(
        reference=reference,
        documents=len(scored),
        tokens=tokens,
        kl_nats=kl,
        kl_nats_stderr=kl_error,
        # A divergence is never below zero.
        kl_nats_ci95=None if kl_reach is None else [max(kl - kl_reach, 0.0), kl + kl_reach],
        perplexity=_exp(math.fsum(sums.nll for sums, _ in scored) / tokens),
        reference_perplexity=_exp(math.fsum(sums.reference_nll for sums, _ in scored) / tokens),
        nll_change_nats=change,
        nll_change_nats_stderr=change_error,
        perplexity_ratio=_exp(change),
        perplexity_ratio_ci95=None if reach is None else [_exp(change - reach), _exp(change + reach)],
        same_top_token=math.fsum(sums.same_top for sums, _ in scored) / tokens,
        reasons={}
        if reach is not None
        else dict.fromkeys(("kl_nats_stderr", "kl_nats_ci95", "nll_change_nats_stderr", "perplexity_ratio_ci95"), one),
    )


def unmeasured(reference: str, reason: str) -> Divergence:
    """A comparison that could not be made."""
    figures = [name for name in Divergence.model_fields if name not in ("reference", "documents", "tokens", "reasons")]
    return Divergence(
        reference=reference, documents=0, tokens=0, **dict.fromkeys(figures), reasons=dict.fromkeys(figures, reason)
    )


def write_sums(path: Path, documents: Sequence[Sums], clusters: Sequence[Hashable]) -> None:
    """A line for each document: its cluster and its sums."""
    names = [field.name for field in fields(Sums)]
    lines = (
        {"cluster": cluster} | dict(zip(names, astuple(sums), strict=True))
        for sums, cluster in zip(documents, clusters, strict=True)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _windows(lm: "MeteredLM", document: str) -> Iterable[tuple[list[int], list[int]]]:
    """(context, scored tokens) of each window, as the harness makes them: every token is scored once."""
    windows = get_rolling_token_windows(
        token_list=lm.rolling_ids(document),
        prefix_token=lm.prefix_token_id,
        max_seq_len=lm.max_length,
        context_len=1,
    )
    return map(make_disjoint_window, windows)


def _compare(model: Any, reference: Any, context: list[int], scored: list[int], device: torch.device) -> Sums:
    ids = torch.tensor([[*context, *scored[:-1]]], device=device)
    ours, theirs = (one(ids).logits[0, -len(scored) :] for one in (model, reference))
    targets = torch.tensor(scored, device=device)
    totals = torch.zeros(4, dtype=torch.float64)
    rows = max(_CHUNK // ours.shape[-1], 1)
    for start in range(0, len(scored), rows):
        part = slice(start, start + rows)
        totals += compare_logits(ours[part], theirs[part], targets[part]).cpu()
    kl, nll, reference_nll, same = totals.tolist()
    return Sums(kl, nll, reference_nll, same, len(scored))


def compare_logits(ours: torch.Tensor, theirs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sums over positions: KL(theirs || ours), both negative log-likelihoods of `targets`, equal likeliest tokens.

    Logits are [positions, vocabulary]. FloatingPointError where one of them is NaN, and where a sum is infinite.
    """
    mine, base = (torch.log_softmax(logits.double(), dim=-1) for logits in (ours, theirs))
    if mine.isnan().any() or base.isnan().any():
        raise FloatingPointError("logits hold NaN where two precisions are compared")
    # A token that the reference rules out adds nothing, whatever the other says of it.
    terms = torch.where(base == -math.inf, 0.0, base.exp() * (base - mine))
    chosen = [-side.gather(1, targets[:, None]).sum() for side in (mine, base)]
    same = (mine.argmax(dim=-1) == base.argmax(dim=-1)).sum()
    sums = torch.stack([terms.sum(), *chosen, same.double()])
    if not sums.isfinite().all():
        raise FloatingPointError("one of two precisions that are compared rules out a token that comes")
    return sums


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        raise FloatingPointError(f"{nats:.0f} nats a token are a perplexity beyond what a number holds") from None


def _mean(items: Sequence[tuple[float, int, Hashable]]) -> tuple[float, float | None, float | None]:
    """The mean per token, its standard error over clusters, and the reach of its 95 % t interval."""
    sums, counts, clusters = zip(*items, strict=True)
    by_cluster = sums_by_cluster(sums, counts, clusters)
    error = ratio_standard_error(*by_cluster)
    mean = math.fsum(sums) / math.fsum(counts)
    return mean, error, None if error is None else student(len(by_cluster[0]) - 1) * error
