"""corpus.json, tokens.json, images.json, latents.json and others of data: what they hold, and what was left out."""

from typing import Any, ClassVar

from pydantic import Field

from effllm.results.base import Part, ResultFile


class DocumentCounts(Part):
    """One side of a split."""

    documents: int = Field(description="Its documents.")
    tokens: int = Field(description="Their tokens.")
    utf8_bytes: int | None = Field(description="Bytes of their text in UTF-8; null for random tokens.")


class Overlap(Part):
    """What training and held-out documents still have in common, by grams of words."""

    words_per_gram: int = Field(description="Words in a gram.")
    gram_share_compared: float = Field(description="Share of the grams that were compared, to bound memory.")
    near_duplicate_jaccard: float = Field(description="Above it a training document was left out.")
    contained_share: float = Field(description="Above it a held-out document was left out.")
    maximum_jaccard: float | None = Field(description="The highest between one document of each side.")
    held_out_gram_share_in_training: float | None = Field(description="Share of held-out grams in training text.")
    held_out_byte_share_covered: dict[str, float | None] = Field(
        description="By a share of its grams: held-out bytes of documents of whose grams as many are in training."
    )
    held_out_documents_covered: dict[str, int] = Field(description="The number of these documents.")


class NearPair(Part):
    """Two documents of one side that were taken for near duplicates."""

    ids: list[str] = Field(description="Their ids, in the source's order.")
    jaccard: float = Field(description="The similarity of their word grams.")
    beginnings: list[str] = Field(description="The beginnings of their texts.")


class NearDuplicateCounts(Part):
    """Near duplicates within the sides of the split. All documents of a cluster but one are dropped as `clustered`."""

    documents: int = Field(description="Documents that have a near duplicate.")
    clusters: int = Field(description="Clusters that these make.")
    pairs: int = Field(description="Pairs that were found near and joined: not all of those that a cluster has.")
    sample: list[NearPair] = Field(description="Some of the pairs, to look at.")


class CorpusSummary(Part, ResultFile):
    """What a corpus holds."""

    FILE: ClassVar[str] = "corpus.json"

    seen: int = Field(description="Documents read from the source, up to the token budget.")
    dropped: dict[str, int] = Field(description="Of those, by reason.")
    splits: dict[str, DocumentCounts] = Field(description="`train` and `held_out`; tokens as the source counts them.")
    budget_met: bool | None = Field(description="Whether maximum_tokens was reached; null without a budget.")
    overlap: Overlap = Field(description="What both sides have in common.")
    near_duplicates: NearDuplicateCounts | None = Field(
        default=None, description="Near duplicates within each side; left out where they are not sought."
    )


class TokensIndex(Part, ResultFile):
    """What packed token files hold."""

    FILE: ClassVar[str] = "tokens.json"

    dtype: str = Field(description="Type of the ids, numpy's name.")
    eos_token_id: int | None = Field(description="What ends a document; null for random tokens.")
    vocab_size: int = Field(description="A bound of the ids.")
    splits: dict[str, DocumentCounts] = Field(description="`train` and `held_out`, or `train` alone.")
    unscored: str | None = Field(
        default=None, description="Why no loss on them means anything; left out where one does."
    )


class OrderSummary(Part, ResultFile):
    """How hard the windows of a token stream are: the higher a value, the harder."""

    FILE: ClassVar[str] = "order.json"

    sequence_length: int = Field(description="Tokens of a window.")
    windows: int = Field(description="Whole windows of the training part.")
    windows_without_value: int = Field(description="Of those, in which no document has a value: they come last.")
    documents: int | None = Field(description="Documents in them; null where windows themselves are measured.")
    documents_without_value: int | None = Field(description="Of those, without one, such as no score.")
    quantiles: dict[str, float] = Field(description="Of the values of windows, by the share that is below.")


class SampleCounts(Part):
    """One side of a split of instruction data."""

    samples: int = Field(description="Conversations.")
    answers: int = Field(description="Turns of the assistant.")
    answer_utf8_bytes: int = Field(description="Bytes of these in UTF-8.")


class InstructionsSummary(Part, ResultFile):
    """What instruction data hold: conversations, or random tokens in their place (the last three keys alone)."""

    FILE: ClassVar[str] = "instructions.json"

    seen: int | None = Field(default=None, description="Rows read from the source, up to the budget.")
    dropped: dict[str, int] | None = Field(default=None, description="Of those, by reason.")
    splits: dict[str, SampleCounts] | None = Field(default=None, description="`train` and `held_out`.")
    budget_met: bool | None = Field(default=None, description="Whether maximum_samples was reached; null without one.")
    images: int | None = Field(default=None, description="Images, each once; left out for text alone.")
    odd: dict[str, int] | None = Field(
        default=None,
        description="Images by what was done without: turned, animated (the first frame is taken), transparent, "
        "palette, print (CMYK); left out where there are none.",
    )
    unusable: list[str] | None = Field(
        default=None, description="The first rows whose image cannot be used, with the reason; left out for text alone."
    )
    prompt_tokens: int | None = Field(default=None, description="Tokens of a random prompt.")
    vocab_size: int | None = Field(default=None, description="A bound of the random ids.")
    unscored: str | None = Field(default=None, description="Why no loss on random tokens means anything.")


class ImagesSummary(Part, ResultFile):
    """What images hold."""

    FILE: ClassVar[str] = "images.json"

    seen: int = Field(description="Images that the source has.")
    dropped: dict[str, int] = Field(description="Of those, by reason.")
    odd: dict[str, int] | None = Field(
        default=None,
        description="Of those that stayed, by what was done without: turned, animated, transparent, palette, print "
        "(CMYK), enlarged; left out where there are none.",
    )
    unusable: list[str] = Field(description="Names of the first that could not be used, with the reason.")
    splits: dict[str, int] = Field(description="Images of `train` and `held_out`.")
    classes: list[str] = Field(description="Names of the labels, in their order.")
    size: int = Field(description="Height and width in pixels.")
    channels: int = Field(description="1 for grey, 3 for colours, 4 of noise.")


class CaptionsSummary(Part, ResultFile):
    """What images or clips with captions hold."""

    FILE: ClassVar[str] = "captions.json"

    seen: int = Field(description="Images, clips, and files that are neither.")
    dropped: dict[str, int] = Field(description="Of those, by reason.")
    unusable: list[str] = Field(description="Names of the first that could not be used, with the reason.")
    splits: dict[str, int] = Field(description="Samples of `train` and `held_out`.")
    shapes: dict[str, int] = Field(description="Samples by their width x height in pixels.")
    frames: int = Field(description="Of each sample; 1 is an image.")


class AutoencoderSummary(Part, ResultFile):
    """What an autoencoder of images is."""

    FILE: ClassVar[str] = "autoencoder.json"

    channels: int = Field(description="Of images: 1 or 3.")
    latent_channels: int = Field(description="Of latents.")
    downscale: int = Field(description="Pixels of an image's side to one of its latents' side.")
    scaling_factor: float = Field(description="Of latents, once they are shifted.")
    shift_factor: float = Field(description="Taken from latents.")
    source: dict[str, Any] = Field(description="As the study states it.")


class LatentsSummary(Part, ResultFile):
    """Latents of images, and how well images come back from them."""

    FILE: ClassVar[str] = "latents.json"

    splits: dict[str, int] = Field(description="Images of `train` and `held_out`.")
    classes: list[str] = Field(description="Names of the labels, in their order.")
    views: int = Field(description="1, or 2 with the mirrored image.")
    channels: int = Field(description="Of a latent image.")
    size: int = Field(description="Its height and width.")
    image_channels: int = Field(description="Of the images behind: 1 or 3.")
    image_size: int = Field(description="Height and width of these in pixels.")
    posterior: str = Field(description="sample, or mean.")
    mean: float = Field(description="Of the latents of training, all channels together.")
    standard_deviation: float = Field(description="Of the same; near 1 where the scaling factor fits the images.")
    decoded_images: int = Field(description="Held-out images that were decoded again.")
    decoded_psnr_db: float | None = Field(
        description="Peak signal-to-noise ratio of these in dB; null where they are equal."
    )
    autoencoder_parameters: int = Field(description="Parameters of the autoencoder.")


class EncodingsSummary(Part, ResultFile):
    """Latents and text embeddings of samples with captions."""

    FILE: ClassVar[str] = "encodings.json"

    splits: dict[str, int] = Field(description="Samples of `train` and `held_out`.")
    texts: int = Field(description="Distinct captions, and the empty one.")
    text_shapes: dict[str, list[int]] = Field(
        description="Shape of what the transformer takes of a text, by the name of its argument."
    )
    family: str = Field(description="The pipeline's.")
