"""Shapes of models before they exist: from the study, from a built artifact, or from the hub's config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from effllm.data.settings import HubTokenizer, SyntheticStream
from effllm.errors import reason_of
from effllm.models.costs.shapes import shape_of
from effllm.models.sources import HubModelSource, LocalModelSource, RandomSource
from effllm.models.vision_language.architecture import VisionLanguageArchitecture
from effllm.models.vision_language.text import text_shape
from effllm.planning.nodes import Node
from effllm.planning.state import State
from effllm.stages import STAGES
from effllm.stages.cost import Unknown
from effllm.stages.graph import Graph

if TYPE_CHECKING:
    from effllm.models.costs.shapes import Shape

_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_SHIPPED = "hub_shapes.json"


class Shapes:
    """Configurations of the study's models.

    vocab_size: assumed for tokenizers whose size is not known; None makes what depends on it unknown.
    fetch: ask the hub for config.json and tokenizer.json (kilobytes to megabytes) of what is not in its cache.
    """

    def __init__(self, graph: Graph, states: Mapping[str, State], vocab_size: int | None, fetch: bool):
        self._graph = graph
        self._states = states
        self._vocab_size = vocab_size
        self._fetch = fetch
        self._known: dict[str, Shape | Unknown] = {}

    def of(self, node: Node) -> "Shape":
        """The configuration of the model that a node makes or uses; raises `Unknown`."""
        if node.name not in self._known:
            try:
                self._known[node.name] = self._find(node)
            except Unknown as error:
                self._known[node.name] = error
        found = self._known[node.name]
        if isinstance(found, Unknown):
            raise found
        return found

    def _find(self, node: Node) -> "Shape":
        if node.stage == "pretrain":
            run = self._graph.study.pretraining[node.id]
            shape = shape_of(run.architecture, run.architecture.vocab_size or self._words(run.tokens))
            shape.dtype = "float32"
            return shape
        if node.stage == "model":
            return self._imported(node)
        for parent in node.parents:
            if STAGES[self._states[parent].node.stage].makes_model:
                return self.of(self._states[parent].node)
        raise Unknown(f"{node.name} has no model")

    def _words(self, tokens: str) -> int:
        """Entries of the vocabulary of a token stream; raises `Unknown`."""
        stream = self._graph.study.tokens[tokens]
        if isinstance(stream, SyntheticStream):
            return stream.vocab_size
        tokenizer = stream.tokenizer
        settings = self._graph.study.tokenizers[tokenizer]
        if not isinstance(settings, HubTokenizer):
            return settings.vocab_size
        manifest = self._graph.manifest("tokenizer", tokenizer)
        built = Path(manifest).parent / "tokenizer" / _TOKENIZER
        path = built if built.is_file() else self._of_hub(settings.repo, settings.revision, _TOKENIZER)
        if path is not None:
            from tokenizers import Tokenizer

            return Tokenizer.from_file(str(path)).get_vocab_size()
        if self._vocab_size is not None:
            return self._vocab_size
        raise Unknown(
            f"the vocabulary of {settings.repo} is not known: build it (snakemake {manifest}), or give --fetch or "
            "--assume-vocab-size"
        )

    def _imported(self, node: Node) -> "Shape":
        source = self._graph.study.models[node.id].source
        if isinstance(source, RandomSource):
            if isinstance(source.architecture, VisionLanguageArchitecture):
                raise Unknown(f"no formulas describe a {source.architecture.model_type}")
            words = source.architecture.vocab_size
            # The study demands it of random weights.
            assert words is not None
            shape = shape_of(source.architecture, words)
            shape.dtype = source.dtype
            return shape
        state = self._states.get(node.name)
        if state and state.up_to_date and state.artifact and state.artifact.manifest.status == "ok":
            return read_config(state.artifact.directory / "model")
        if isinstance(source, LocalModelSource):
            return read_config(Path(source.path))
        assert isinstance(source, HubModelSource)
        path = self._of_hub(source.repo, source.revision, _CONFIG)
        if path is None and (shipped := _shipped(source.repo)) is not None:
            return shipped
        if path is None:
            raise Unknown(
                f"the shape of {source.repo} is not known here: build it (snakemake {node.path}), or effllm plan "
                "--fetch asks the hub"
            )
        return read_config(path.parent)

    def _of_hub(self, repo: str, revision: str, name: str) -> Path | None:
        """A small file of a repository, from the hub's cache or, if asked to, from the hub."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        from effllm.hub.explain import HUB_ERRORS, causes, explain

        cached = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        if not self._fetch:
            return None
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except (*HUB_ERRORS, OSError) as error:
            known = next((cause for cause in causes(error) if isinstance(cause, HUB_ERRORS)), None)
            reason = explain(known, "model", repo, revision) if known else str(error)
            raise Unknown(f"{name} of {repo} cannot be fetched: {reason}") from None


def _shipped(repo: str) -> "Shape | None":
    """The shape of a model of the shipped studies, whose config.json is not here."""
    found = json.loads(Path(__file__).with_name(_SHIPPED).read_text())["models"].get(repo)
    if found is None:
        return None
    from transformers import AutoConfig

    # Token ids outside of a made-up vocabulary are refused, and none is asked for.
    return AutoConfig.for_model(**found, pad_token_id=None, dtype="bfloat16")


def read_config(directory: Path) -> "Shape":
    """The configuration in a model's directory; raises `Unknown` if it cannot be read."""
    from transformers import AutoConfig

    import effllm.models.decoder.config  # noqa: F401  (known to the Auto classes from here on)

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        # Of a vision-language model the formulas know its language model.
        return text_shape(config) or config
    # Transformers answers a configuration that it does not understand by nearly every type of error.
    except Exception as error:
        raise Unknown(f"{directory / _CONFIG} is not readable ({reason_of(error)})") from error
