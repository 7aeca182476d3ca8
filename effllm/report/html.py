"""The page as HTML: templates filled with blocks. The same page gives the same bytes."""

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined

from effllm import __version__
from effllm.report.blocks import Page

_TEMPLATES = "templates"


def html_of(page: Page) -> str:
    """The page as one file: style and script inline, admitted by their digests alone, and nothing else."""
    loader = PackageLoader("effllm.report", _TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = loader.get_source(environment, "style.css")[0]
    script = loader.get_source(environment, "script.js")[0]
    return environment.get_template("page.html.j2").render(
        page=page,
        version=__version__,
        style=style,
        script=script,
        style_digest=_digest(style),
        script_digest=_digest(script),
    )


def _digest(text: str) -> str:
    """What a content security policy calls the text by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
