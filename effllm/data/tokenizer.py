"""The stage that makes a tokenizer: byte-level BPE trained on a corpus, or a pinned one from the hub.

Payload: `tokenizer/`, which `AutoTokenizer.from_pretrained` reads without network.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from effllm.data.settings import HubTokenizer, Tokenizer, TrainedTokenizer
from effllm.data.shards import read_batches
from effllm.errors import UserError
from effllm.fields import Section
from effllm.hub.repository import HubFile, Repository
from effllm.runtime.progress import progress
from effllm.runtime.stage import Job, main

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIRECTORY = "tokenizer"
# Configuration and vocabulary, in the forms of all tokenizers; no weights.
_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
END_OF_TEXT = "<|endoftext|>"


class _Config(Section):
    tokenizer: Tokenizer = Field(description="Trained on a corpus, or taken from the hub.")


def build(job: Job) -> None:
    """Train or fetch the tokenizer that `job.spec` describes and save it."""
    config = job.config(_Config).tokenizer
    if isinstance(config, TrainedTokenizer):
        tokenizer = train(job.inputs["corpus"].directory, config)
    else:
        tokenizer = fetch(config, job.scratch / DIRECTORY)
    tokenizer.save_pretrained(job.output / DIRECTORY)


def load(artifact_directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a tokenizer artifact; `UserError` if it cannot be read."""
    from transformers import AutoTokenizer

    path = artifact_directory / DIRECTORY
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable tokenizer ({error}): delete {artifact_directory} and run again to rebuild it."
        ) from None


def begin_of_text(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that a tokenizer itself puts before a text: one begin-of-text token (Llama, Gemma), or none (Qwen2)."""
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return next(whole[:start] for start in range(len(whole)) if whole[start : start + len(plain)] == plain)


def train(corpus: Path, config: TrainedTokenizer) -> "PreTrainedTokenizerBase":
    """Byte-level BPE (GPT-2's splitting pattern, all 256 bytes, no normalization) on the training shards of `corpus`.

    Any text can be encoded and decodes to itself. `<|endoftext|>` begins, ends and pads; there is no unknown token,
    because bytes leave nothing unknown. `UserError` if the text has too few pairs for `vocab_size`.
    """
    from transformers import PreTrainedTokenizerFast

    backend = Backend(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.minimum_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    batches = progress(read_batches(corpus, "train"), unit="thousand documents", label="reading for the tokenizer")
    backend.train_from_iterator((batch.column("text").to_pylist() for batch in batches), trainer)
    if backend.get_vocab_size() < config.vocab_size:
        raise UserError(
            f"corpus {config.corpus} is too small for a tokenizer of vocab_size {config.vocab_size}: its training text "
            f"gives {backend.get_vocab_size()} tokens with minimum_frequency {config.minimum_frequency}; lower one of "
            "the two or take more text."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def tokenizer_files(repository: Repository) -> list[HubFile]:
    """The files of a repository that may belong to its tokenizer."""
    return [file for file in repository.files(_FILES) if not file.path.endswith(".index.json")]


def fetch(config: HubTokenizer, directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of `config.repo` at its pinned revision, its files fetched into `directory`.

    `UserError` where the hub does not give it, or where there is none.
    """
    from transformers import AutoTokenizer

    repository = Repository("model", config.repo, config.revision)
    directory.mkdir(exist_ok=True)
    repository.fetch(tokenizer_files(repository), directory)
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{repository.label} holds no tokenizer that can be read ({reason.replace(str(directory), config.repo)}); "
            "name a repository that has one."
        ) from None


if __name__ == "__main__":
    from effllm.stages.tokenizer import TokenizerStage

    main(TokenizerStage(), build)
