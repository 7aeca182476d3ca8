"""Engines by the `kind` that they have in a study.

To add one: a file with a subclass of `EngineSettings`, like `transformers.py`, and a line here. Nothing here imports
torch.
"""

from typing import Annotated

from effllm.fields import FormOf
from effllm.serving.engines.server import ServerEngine
from effllm.serving.engines.settings import EngineSettings
from effllm.serving.engines.transformers import TransformersEngine

ENGINES: dict[str, type[EngineSettings]] = {"server": ServerEngine, "transformers": TransformersEngine}

AnyEngine = Annotated[EngineSettings, FormOf(ENGINES)]
"""The type of an engine in a configuration."""
