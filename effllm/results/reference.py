"""All results by stage, their JSON schema (config/results.schema.json) and the page of their keys."""

from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import models_json_schema

from effllm.results.base import ResultFile
from effllm.results.benchmark import Benchmark
from effllm.results.data import (
    AutoencoderSummary,
    CaptionsSummary,
    CorpusSummary,
    EncodingsSummary,
    ImagesSummary,
    InstructionsSummary,
    LatentsSummary,
    OrderSummary,
    TokensIndex,
)
from effllm.results.evaluation import Clusters, Evaluation
from effllm.results.fidelity import FeaturesSummary, FidelityResult, SampleSummary, SamplingCost
from effllm.results.latency import ServedRequests
from effllm.results.model import GeneratorSummary, ModelSummary
from effllm.results.overlap import ItemsOverlap
from effllm.results.profile import Generations, Profile
from effllm.results.provenance import Provenance
from effllm.results.quantization import Quantization
from effllm.results.serving import CompletedRequests, Serving
from effllm.results.telemetry import WindowsRecord
from effllm.results.training import (
    DiffusionQuality,
    Efficiency,
    FinetuningQuality,
    LossCurve,
    PretrainingQuality,
    TuningQuality,
)

FILES: dict[str, tuple[type[ResultFile], ...]] = {
    "corpus": (CorpusSummary,),
    "tokens": (TokensIndex,),
    "order": (OrderSummary,),
    "instructions": (InstructionsSummary,),
    "images": (ImagesSummary,),
    "captions": (CaptionsSummary,),
    "autoencoder": (AutoencoderSummary,),
    "latents": (LatentsSummary,),
    "features": (FeaturesSummary,),
    "pretrain": (PretrainingQuality, Efficiency, LossCurve, WindowsRecord),
    "diffuse": (DiffusionQuality, Efficiency, LossCurve, WindowsRecord),
    "sample": (SampleSummary, SamplingCost, WindowsRecord),
    "fidelity": (FidelityResult,),
    "generator": (GeneratorSummary,),
    "encode": (EncodingsSummary,),
    "tune": (TuningQuality, Efficiency, LossCurve, WindowsRecord),
    "model": (ModelSummary,),
    "finetune": (FinetuningQuality, Efficiency, LossCurve, WindowsRecord),
    "quantize": (Quantization,),
    "benchmark": (Benchmark,),
    "evaluate": (Evaluation, Clusters, WindowsRecord),
    "overlap": (ItemsOverlap,),
    "profile": (Profile, Generations, WindowsRecord),
    "serve": (Serving, ServedRequests, CompletedRequests),
    "every stage": (Provenance,),
}
_PAGE = """# Results

What stages write as JSON, beside the manifest that [architecture.md](../architecture.md) describes. The models are in
`effllm/results/`, and `config/results.schema.json` has them as JSON schema. Units are in the names of keys: s, ms, W,
J, bytes; GB is 1e9 bytes; rates, shares and scores are fractions of 1. A figure that was not measured is null, and its
object's `reasons` says why. This page is generated: `effllm schema results-page --output docs/reference/results.md`.
"""


def results_schema() -> dict[str, Any]:
    """The JSON schema of an object that holds the files of all stages by `<stage>/<file>`."""
    models = dict.fromkeys(model for files in FILES.values() for model in files)
    for model in models:
        model.model_rebuild()
    references, schema = models_json_schema([(model, "validation") for model in models])
    properties = {
        f"{stage}/{model.FILE}": references[model, "validation"] for stage, files in FILES.items() for model in files
    }
    return {"title": "Results", "type": "object", "properties": properties, **schema}


def results_page() -> str:
    """The keys of all results as Markdown: first the files by stage, then every object."""
    schema = results_schema()
    lines = [_PAGE, "| stage | file | content |", "|---|---|---|"]
    for name, reference in schema["properties"].items():
        stage, _, file = name.partition("/")
        lines.append(f"| {stage} | `{file}` | {_type(reference)} |")
    for name, definition in sorted(schema["$defs"].items()):
        lines += ["", f"## {name}", "", str(definition.get("description", "")).partition("\n\n")[0].replace("\n", " ")]
        lines += _rows(definition)
    return "\n".join(lines) + "\n"


def _rows(definition: dict[str, Any]) -> Iterator[str]:
    properties = definition.get("properties", {})
    if not properties:
        yield from ("", f"Its form: {_type({**definition, 'title': None})}.")
        return
    required = definition.get("required", ())
    yield from ("", "| key | type | meaning |", "|---|---|---|")
    for key, value in properties.items():
        absent = "" if key in required else " May be absent."
        yield f"| `{key}` | {_type(value)} | {value.get('description', '')}{absent} |"


def _type(schema: dict[str, Any]) -> str:
    """A type as the page names it: `number or null`, `list of` and a link to an object."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(item) for item in schema[key])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    entries = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)
    if schema.get("type") == "object":
        return f"mapping to {_type(entries)}" if isinstance(entries, dict) else "mapping"
    return str(schema.get("type", "any"))
