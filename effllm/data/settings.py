"""Corpora, tokenizers and token streams."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from effllm.fields import (
    Count,
    Dimension,
    Fraction,
    Id,
    PositiveFloat,
    PositiveInt,
    Repository,
    Revision,
    Section,
    Seed,
    Text,
    ending_in,
)

CorpusPath = Annotated[Text, ending_in(".parquet", ".jsonl", ".jsonl.gz")]


class HubCorpusSource(Section):
    """A dataset on the hub in FineWeb-Edu's columns, read file by file."""

    kind: Literal["hub"]
    repo: Repository = Field(description="Dataset repository on the hub, such as HuggingFaceFW/fineweb-edu.")
    name: Text | None = Field(default=None, description="Configuration of the dataset, such as sample-350BT.")
    split: Text = Field(default="train", description="Split of the dataset.")
    revision: Revision = Field(description="Commit of the dataset repository, 40 hexadecimal digits.")


class FilesCorpusSource(Section):
    """Local parquet or JSON-lines files in FineWeb-Edu's columns."""

    kind: Literal["files"]
    paths: Annotated[list[CorpusPath], Field(min_length=1)] = Field(
        description="Files or glob patterns (*.parquet, *.jsonl, *.jsonl.gz), read in sorted order."
    )


class EmbeddedCorpusSource(Section):
    """The text that every Python installation carries: its language reference and its docstrings."""

    kind: Literal["embedded"]
    minimum_characters: PositiveInt = Field(default=200, description="Shorter documents are left out.")


CorpusSource = Annotated[HubCorpusSource | FilesCorpusSource | EmbeddedCorpusSource, Field(discriminator="kind")]


class Filters(Section):
    """What a document must be beside its language and its rounded score. Where a column is null, it passes no filter.

    Each that is set counts what it removes in corpus.json, under the first that applies.
    """

    minimum_language_score: Fraction | None = Field(
        default=None, description="Least certainty of the language (column `language_score`)."
    )
    minimum_score: PositiveFloat | None = Field(
        default=None, description="Least educational score, not rounded (column `score`)."
    )
    minimum_document_tokens: PositiveInt | None = Field(
        default=None, description="Least length (column `token_count`)."
    )
    maximum_document_tokens: PositiveInt | None = Field(
        default=None, description="Greatest length (column `token_count`)."
    )
    maximum_repeated_line_share: Fraction | None = Field(
        default=None,
        description="Greatest share of the lines that hold text which an earlier line of the document was already.",
    )

    @model_validator(mode="after")
    def _lengths_leave_room(self) -> "Filters":
        least, most = self.minimum_document_tokens, self.maximum_document_tokens
        if least is not None and most is not None and least > most:
            raise ValueError(f"minimum_document_tokens {least} is above maximum_document_tokens {most}: exchange them")
        return self


class NearDuplicates(Section):
    """Documents that are nearly another one of their side of the split, of which one stays.

    MinHash finds the pairs to compare, and the exact Jaccard similarity of their word grams decides. Pairs are joined
    to clusters, whatever files their documents are in. The defaults are those of FineWeb.
    """

    words_per_gram: Annotated[int, Field(ge=1, le=64)] = Field(default=5, description="Words in a gram.")
    minimum_jaccard: Annotated[Fraction, Field(gt=0)] = Field(
        default=0.8, description="Least Jaccard similarity of two documents' grams that makes them near duplicates."
    )
    hashes: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=112, description="Hash functions of a signature: bands times rows_per_band."
    )
    bands: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=14, description="Bands of a signature; documents that agree in one are compared."
    )
    rows_per_band: Annotated[int, Field(ge=1, le=4096)] = Field(default=8, description="Hash functions in a band.")
    keep: Literal["first", "longest"] = Field(
        default="first",
        description="Which document of a cluster stays: the first in the source's order, or the one of most tokens "
        "(column `token_count`), of several the first.",
    )
    seed: Seed = Field(default=0, description="Seed of the hash functions.")
    algorithm: Literal[2] = Field(
        default=2, description="Version of the signatures of the library, rensa; it follows the release that is used."
    )

    @model_validator(mode="after")
    def _bands_fill_the_signature(self) -> "NearDuplicates":
        if self.hashes != self.bands * self.rows_per_band:
            raise ValueError(
                f"hashes {self.hashes} is not bands {self.bands} times rows_per_band {self.rows_per_band}: "
                f"set it to {self.bands * self.rows_per_band}"
            )
        return self


class Corpus(Section):
    """A sample of documents, split into a training and a held-out part."""

    source: CorpusSource = Field(description="Where the documents come from: hub, files or embedded.")
    languages: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, description="Keep documents in these languages (column `language`); null keeps all."
    )
    minimum_int_score: Count = Field(
        default=0, description="Keep documents whose educational score (column `int_score`) is at least this."
    )
    # Left out of the spec where there are none: it came later.
    filters: Filters | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Filters by score, length and repetition."
    )
    # Left out of the spec where it is not asked for, as are filters.
    near_duplicates: NearDuplicates | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Leave out near duplicates within each side of the split; {} takes the defaults, null leaves none "
        "out but those of the other side.",
    )
    sample_fraction: Annotated[Fraction, Field(gt=0)] = Field(
        default=1.0,
        description="Share of the source's documents to keep, drawn by a hash of the seed and the document id.",
    )
    maximum_tokens: PositiveInt | None = Field(
        default=None,
        description="Stop after this many training tokens (column `token_count`), in the source's order. What "
        "near_duplicates leaves out does not count, near duplicates of held-out documents do; null takes everything.",
    )
    held_out_fraction: Annotated[Fraction, Field(gt=0, lt=1)] = Field(
        description="Share of documents held out, chosen by a hash of the text alone: whatever the seed or the "
        "source, a text is on the same side of the split. Training documents that are near duplicates of held-out "
        "ones are left out, and held-out ones that a training document contains."
    )
    seed: Seed = Field(default=0, description="Seed of the sample.")
    shard_documents: PositiveInt = Field(default=100_000, description="Documents per parquet file written.")


class TrainedTokenizer(Section):
    """A byte-level BPE tokenizer trained on the training part of a corpus."""

    kind: Literal["train"]
    corpus: Id = Field(description="Id of the corpus.")
    vocab_size: Annotated[Dimension, Field(ge=258)] = Field(
        description="Size of the vocabulary, the 256 bytes and the end-of-text token included."
    )
    minimum_frequency: PositiveInt = Field(default=2, description="Pairs seen less often are never merged.")


class HubTokenizer(Section):
    """The tokenizer of a model on the hub."""

    kind: Literal["hub"]
    repo: Repository = Field(description="Model repository on the hub.")
    revision: Revision = Field(description="Commit of the repository, 40 hexadecimal digits.")


Tokenizer = Annotated[TrainedTokenizer | HubTokenizer, Field(discriminator="kind")]


class EncodedStream(Section):
    """A corpus encoded by a tokenizer into memory-mapped files."""

    # Left out of the spec: it is what a stream is that names no kind.
    kind: Literal["encoded"] = Field(default="encoded", exclude=True)
    corpus: Id = Field(description="Id of the corpus.")
    tokenizer: Id = Field(description="Id of the tokenizer.")


class SyntheticStream(Section):
    """Random token ids, without a corpus and a tokenizer: they measure what a shape costs, not what it learns.

    Held-out loss and scores behind such a stream are null with the reason "random tokens".
    """

    kind: Literal["synthetic"]
    vocab_size: Annotated[Dimension, Field(ge=2)] = Field(description="Ids run from 0 to this, exclusive.")
    tokens: PositiveInt = Field(description="Number of tokens.")
    distribution: Literal["uniform", "zipf"] = Field(
        default="uniform", description="uniform: every id alike. zipf: id k with a weight of (k + 1)^-exponent."
    )
    exponent: PositiveFloat = Field(default=1.0, description="Exponent of zipf.")
    seed: Seed = Field(default=0, description="Seed of the ids.")


def _encoded_unless_told(value: Any) -> Any:
    return {"kind": "encoded", **value} if isinstance(value, dict) else value


TokenStream = Annotated[
    Annotated[EncodedStream | SyntheticStream, Field(discriminator="kind")], BeforeValidator(_encoded_unless_told)
]
