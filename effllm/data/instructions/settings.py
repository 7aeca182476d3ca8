"""Instruction data for supervised fine-tuning, and how it becomes token sequences."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from effllm.data.images.settings import ImagePath
from effllm.fields import Dimension, Fraction, PositiveInt, Repository, Revision, Section, Seed, Text, ending_in

InstructionPath = Annotated[Text, ending_in(".parquet", ".jsonl", ".jsonl.gz", ".json")]
_IMAGE = (
    "Column of the image of a row, if rows have one: a file's bytes, a struct that has them, or a path; or the column "
    "of messages with parts that are images."
)


class _Columns(Section):
    @model_serializer(mode="wrap")
    def _only_what_is_used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Keys that came later: where a study does not use them, its specs are what they were.
        return {k: v for k, v in serialize(self).items() if v is not None or k not in self._later}

    _later: ClassVar[tuple[str, ...]] = ()


class ChatColumns(_Columns):
    """A column that holds a conversation: a list of messages, or its JSON text.

    A message is `{role, content}` or, as ShareGPT has it, `{from, value}`; roles are system, user (human) and assistant
    (gpt). Content is text, or a list of parts of text.
    """

    _later = ("system", "image")

    kind: Literal["chat"]
    messages: Text = Field(default="messages", description="Column of the list of messages.")
    system: Text | None = Field(
        default=None, description="Column of the system message, where it is not one of the messages."
    )
    image: Text | None = Field(default=None, description=_IMAGE)

    def names(self) -> list[str]:
        """The columns to read, that of the image apart."""
        return [name for name in (self.messages, self.system) if name is not None]

    def needed(self) -> list[str]:
        """Those that a row must have."""
        return [self.messages]


class PromptResponseColumns(_Columns):
    """Columns that hold one question and its answer: texts, or lists of messages."""

    _later = ("input", "image")

    kind: Literal["prompt_response"]
    prompt: Text = Field(default="prompt", description="Column of the question.")
    input: Text | None = Field(
        default=None,
        description="Column of what the question is about, as in instruction, input, output; it follows after a blank "
        "line, where it has text.",
    )
    response: Text = Field(default="response", description="Column of the answer, such as completion.")
    system: Text | None = Field(default=None, description="Column of the system message, if there is one.")
    reasoning: Text | None = Field(
        default=None, description="Column of the reasoning that precedes the answer, if there is one."
    )
    answer: str = Field(
        default="## Thinking\n\n{reasoning}\n\n## Final Response\n\n{response}",
        description="How reasoning and response become one answer, where there is a reasoning column. The default is "
        "the form of HuatuoGPT-o1, for which medical-o1-reasoning-SFT was made.",
    )
    image: Text | None = Field(
        default=None, description=f"{_IMAGE} The response may then be a list of answers, the first of which is taken."
    )

    @model_validator(mode="after")
    def _answer_has_both(self) -> "PromptResponseColumns":
        missing = [name for name in ("{reasoning}", "{response}") if self.answer.count(name) != 1]
        if missing:
            raise ValueError(f"answer {self.answer!r} must hold {' and '.join(missing)} exactly once: correct it")
        return self

    def names(self) -> list[str]:
        """The columns to read, that of the image apart."""
        named = (self.prompt, self.input, self.response, self.system, self.reasoning)
        return [name for name in named if name is not None]

    def needed(self) -> list[str]:
        """Those that a row must have."""
        return [name for name in (self.prompt, self.response, self.reasoning) if name is not None]


Columns = Annotated[ChatColumns | PromptResponseColumns, Field(discriminator="kind")]


class HubInstructionSource(Section):
    """A dataset on the hub, read file by file."""

    kind: Literal["hub"]
    repo: Repository = Field(
        description="Dataset repository on the hub, such as FreedomIntelligence/medical-o1-reasoning-SFT."
    )
    name: Text | None = Field(default=None, description="Configuration of the dataset, such as en.")
    split: Text = Field(default="train", description="Split of the dataset.")
    revision: Revision = Field(description="Commit of the dataset repository, 40 hexadecimal digits.")
    columns: Columns = Field(description="Which columns hold what: chat or prompt_response.")


class FilesInstructionSource(Section):
    """Local parquet, JSON-lines or JSON files."""

    kind: Literal["files"]
    paths: Annotated[list[InstructionPath], Field(min_length=1)] = Field(
        description="Files or glob patterns (*.parquet, *.jsonl, *.jsonl.gz, *.json), read in sorted order."
    )
    columns: Columns = Field(description="Which columns hold what: chat or prompt_response.")
    images: list[ImagePath] = Field(
        default_factory=list,
        description="Files or glob patterns of the images that rows name by paths, absolute or from image_folder.",
    )
    image_folder: Text | None = Field(
        default=None, description="Folder from which rows name images; null is that of the row's file."
    )

    @model_validator(mode="after")
    def _images_have_a_column(self) -> "FilesInstructionSource":
        if self.images and self.columns.image is None:
            raise ValueError("images: no column names them; add columns.image, or take the images out")
        if self.image_folder is not None and not self.images:
            raise ValueError(
                f"image_folder: {self.image_folder!r} is of no use without images: list them, such as *.jpg"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_no_images(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As it was before there were any.
        later = ("images", "image_folder")
        return {key: value for key, value in serialize(self).items() if key not in later or value}


class EmbeddedInstructionSource(Section):
    """Questions about Python's standard library, made of the docstrings that every installation carries."""

    kind: Literal["embedded"]
    questions: Literal["describe", "name"] = Field(
        description="describe asks what a function or class does and is answered by its summary; "
        "name asks which function does a thing and is answered by its signature."
    )


class DigitInstructionSource(Section):
    """Questions about scikit-learn's 1,797 pictures of handwritten digits, which the text alone does not answer."""

    kind: Literal["digits"]
    questions: Literal["which", "parity"] = Field(
        description="which asks for the digit and is answered by its name; parity asks whether it is even or odd."
    )


class SyntheticInstructionSource(Section):
    """Samples of random token ids, all of one length, without text and tokenizer: they measure what methods cost.

    Losses behind them are null with the reason "random tokens".
    """

    kind: Literal["synthetic"]
    vocab_size: Annotated[Dimension, Field(ge=2)] = Field(description="Ids run from 0 to this, exclusive.")
    samples: PositiveInt = Field(description="Number of training samples; there are no held-out ones.")
    prompt_tokens: Dimension = Field(description="Tokens of each prompt, on which there is no loss.")
    answer_tokens: Dimension = Field(description="Tokens of each answer.")
    seed: Seed = Field(default=0, description="Seed of the ids.")


InstructionSource = Annotated[
    HubInstructionSource
    | FilesInstructionSource
    | EmbeddedInstructionSource
    | DigitInstructionSource
    | SyntheticInstructionSource,
    Field(discriminator="kind"),
]


class Instructions(Section):
    """A set of conversations, split into a training and a held-out part."""

    source: InstructionSource = Field(
        description="Where the conversations come from: hub, files, embedded, digits (with pictures), or synthetic "
        "ones that are random."
    )
    maximum_samples: PositiveInt | None = Field(
        default=None,
        description="Stop after this many training samples, in the source's order; null takes everything.",
    )
    held_out_fraction: Annotated[Fraction, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of samples held out, chosen by a hash of the prompt alone: whatever the source and the "
        "answer, a prompt is on the same side of the split; of samples with an image, by its pixels alone. Synthetic "
        "samples have none.",
    )

    @property
    def is_synthetic(self) -> bool:
        """Whether the samples are random tokens."""
        return isinstance(self.source, SyntheticInstructionSource)

    @property
    def has_images(self) -> bool:
        """Whether every sample has an image."""
        if isinstance(self.source, HubInstructionSource | FilesInstructionSource):
            return self.source.columns.image is not None
        return isinstance(self.source, DigitInstructionSource)

    @model_validator(mode="after")
    def _holds_out(self) -> "Instructions":
        if self.held_out_fraction is None and not self.is_synthetic:
            raise ValueError("held_out_fraction is missing: add the share of samples that is held out, such as 0.05")
        return self


class Encoding(Section):
    """How samples become token sequences for training: template, truncation and packing."""

    template: Literal["tokenizer", "chatml", "plain"] = Field(
        default="tokenizer",
        description="Chat template: the tokenizer's own, ChatML (for tokenizers that have its markers), or plain "
        "headings (### Instruction, ### Response) that any tokenizer can write.",
    )
    template_without_own: Literal["chatml", "plain"] | None = Field(
        default=None,
        description="With template tokenizer: what tokenizers of base models that have no template get; null is an "
        "error for them.",
    )
    sequence_length: Dimension = Field(description="Longest sequence in tokens; longer answers are cut at the end.")
    too_long: Literal["error", "drop"] = Field(
        default="error",
        description="What happens to a sample whose prompt leaves no room for an answer: stop before training and "
        "name it, or leave it out and count it.",
    )
    packing: bool = Field(
        default=False,
        description="Put several whole samples into one sequence, each attending to itself only.",
    )
