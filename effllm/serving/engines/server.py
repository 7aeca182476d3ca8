"""Settings of a server with the API of OpenAI. Nothing here imports a client."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from effllm.fields import LONGEST_TEXT, Seconds, Text
from effllm.serving.engines.completions import Optional
from effllm.serving.engines.settings import EngineSettings, Served

if TYPE_CHECKING:
    from effllm.serving.engine import Engine

_MODEL, _PORT = "{model}", "{port}"
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)S?$")
_Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]


class ServerEngine(EngineSettings):
    """A server with the API of OpenAI (vLLM, SGLang): one that the stage starts, or one that runs on this machine."""

    kind: Literal["server"]
    command: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None,
        description="Starts it, word by word: a program of an environment of its own. {model} is the checkpoint's "
        "directory, {port} a free port. null for one that runs at `url`.",
    )
    url: Text | None = Field(
        default=None, description="Where it runs already, on loopback, as http://127.0.0.1:8000; null for `command`."
    )
    version: Text = Field(description="Its version. One that says another is refused.")
    served_model: Text | None = Field(
        default=None, description="The model's name in its /v1/models; null is the checkpoint's directory."
    )
    environment: dict[_Name, Annotated[str, Field(max_length=LONGEST_TEXT)]] = Field(
        default={}, description="Variables of `command`'s environment, beside those of the stage."
    )
    omit: list[Optional] = Field(default=[], description="Parameters that it refuses, which requests then do without.")
    body: dict[str, Any] = Field(default={}, description="Further parameters of each request.")
    api_key_variable: _Name | None = Field(
        default=None, description="Environment variable with the key that it asks for; the key is written nowhere."
    )
    ready_timeout_s: Annotated[Seconds, Field(gt=0)] = Field(
        default=900.0, description="It must have loaded the model after so long."
    )

    @field_validator("url")
    @classmethod
    def _is_on_loopback(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.username or parts.path.strip("/") or parts.query:
            raise ValueError(f"{url!r} is no address of a server: write it as http://127.0.0.1:8000, without a path")
        if not _LOOPBACK.fullmatch(parts.hostname):
            raise ValueError(
                f"{url!r} is not on loopback, and a network in between would be measured too: run the server on this "
                "machine, and name it as http://127.0.0.1:PORT"
            )
        return url.rstrip("/")

    @field_validator("environment")
    @classmethod
    def _holds_no_secrets(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if _SECRET.search(name.upper()):
                raise ValueError(
                    f"{name} would be kept in every result: export it where the workflow is started instead"
                )
        return environment

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> "ServerEngine":
        if (self.command is None) == (self.url is None):
            raise ValueError("command, url: a server is started by the one or runs at the other: state one of them")
        if self.command is not None:
            for placeholder in (_MODEL, _PORT):
                if not any(placeholder in word for word in self.command):
                    raise ValueError(
                        f"command: {placeholder} does not occur in it: write it where the server takes "
                        + ("the model" if placeholder == _MODEL else "its port")
                    )
        return self

    def command_for(self, directory: Path, port: int) -> list[str]:
        """The command that serves a checkpoint at a port."""
        return [word.replace(_MODEL, str(directory)).replace(_PORT, str(port)) for word in self.command or ()]

    def open(self, served: Served) -> "Engine":
        """The engine, whose server is started by its `start`."""
        from effllm.serving.engines.openai import OpenAIEngine

        return OpenAIEngine(self, served)
