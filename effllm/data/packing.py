"""The stage that encodes a corpus into memory-mapped token files (`effllm.data.tokens` has their layout).

in:  corpus and tokenizer; nothing for a synthetic stream
out: tokens.json and the token files
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from pydantic import TypeAdapter

from effllm.data.shards import read_batches
from effllm.data.synthetic import write_stream
from effllm.data.tokenizer import load as load_tokenizer
from effllm.data.tokens import BOUNDARY_DTYPE, boundaries_file, id_dtype, tokens_file
from effllm.data.writing import named_errors
from effllm.errors import UserError
from effllm.results.data import CorpusSummary, DocumentCounts, TokensIndex
from effllm.runtime.progress import Progress
from effllm.runtime.stage import Job, main
from effllm.study.data import SyntheticStream, TokenStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Documents encoded at a time: enough to keep the encoder's threads busy, little enough to keep memory flat.
_BATCH_DOCUMENTS = 256


def build(job: Job) -> None:
    """Encode both splits of the corpus artifact with the tokenizer artifact, or draw a synthetic stream."""
    stream = TypeAdapter(TokenStream).validate_python(job.spec["config"])
    if isinstance(stream, SyntheticStream):
        write_stream(job, stream)
        return
    corpus = job.inputs["corpus"]
    tokenizer = load_tokenizer(job.inputs["tokenizer"].directory)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer {job.inputs['tokenizer'].manifest.id} has no end-of-text token to put between documents; "
            "choose a tokenizer that has an eos_token."
        )
    splits = CorpusSummary.read(corpus.directory).splits
    # Some tokenizers on the hub skip ids, so their number of tokens does not bound the ids.
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    dtype = id_dtype(vocab_size)
    job.write(
        TokensIndex(
            dtype=dtype.str,
            eos_token_id=tokenizer.eos_token_id,
            vocab_size=vocab_size,
            splits={
                split: pack(corpus.directory, split, tokenizer, dtype, job.output, counts.documents)
                for split, counts in splits.items()
            },
        )
    )


def pack(
    corpus: Path, split: str, tokenizer: "PreTrainedTokenizerBase", dtype: np.dtype, output: Path, total: int
) -> DocumentCounts:
    """Encode one split of `total` documents to `output` and return its counts of tokens, documents and bytes.

    A document that spells a special token out holds its characters: only the packing itself writes the token.
    """
    counts: dict[str, Any] = {"tokens": 0, "documents": 0, "utf8_bytes": 0}
    with named_errors(tokens_file(output, split)), ExitStack() as stack:
        ids_stream = stack.enter_context(open(tokens_file(output, split), "wb"))
        ends_stream = stack.enter_context(open(boundaries_file(output, split), "wb"))
        bar = stack.enter_context(Progress(total, unit="documents", label=f"encoding {split}"))
        for batch in read_batches(corpus, split, batch_size=_BATCH_DOCUMENTS):
            texts = batch.column("text")
            encoded = tokenizer(
                texts.to_pylist(),
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            for ids in encoded:
                ids.append(tokenizer.eos_token_id)
            ends = counts["tokens"] + np.cumsum([len(ids) for ids in encoded], dtype=BOUNDARY_DTYPE)
            ids_stream.write(np.concatenate([np.asarray(ids, dtype=dtype) for ids in encoded]).data)
            ends_stream.write(ends.data)
            counts["tokens"] = int(ends[-1])
            counts["documents"] += len(encoded)
            counts["utf8_bytes"] += pc.sum(pc.binary_length(texts)).as_py()
            bar.update(len(encoded))
    return DocumentCounts(**counts)


if __name__ == "__main__":
    # Nothing forks in this process, and RAYON_NUM_THREADS holds the encoder to the job's threads.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    main("tokens", build)
