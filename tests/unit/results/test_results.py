"""Results as files: the bytes that stages wrote before they had models, the published schema, and damage."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from effllm.cli import results_page_text, results_schema_text
from effllm.errors import UserError
from effllm.results.base import ResultFile
from effllm.results.evaluation import Clusters, Evaluation
from effllm.results.profile import Profile
from effllm.results.quantization import Quantization
from effllm.results.reference import FILES
from effllm.results.telemetry import TelemetrySummary
from effllm.results.training import Efficiency, PretrainingQuality

GOLDEN = Path(__file__).parent / "golden"
# Keys that are left out on purpose: of options, of what scores nothing, of random data and chat templates.
NOT_ALWAYS = {"odd", "near_duplicates", "unscored", "prompt_tokens", "vocab_size", "chat", "divergence", "held_out"}
# Of images.
NOT_ALWAYS |= {"images", "unusable", "held_out_loss_blank", "image_gain", "image_gain_stderr"}
# Of adapters.
NOT_ALWAYS |= {"adapter_rank", "parameters_matched"}


def _golden() -> list[tuple[str, type[ResultFile]]]:
    """Stage and model of every file that is kept, all of them written by the embedded study."""
    stages = {**FILES, "pretrain": (*FILES["pretrain"], *FILES["every stage"])}
    return [(stage, model) for stage in stages for model in stages[stage] if (GOLDEN / stage / model.FILE).is_file()]


def test_every_payload_has_a_golden_file() -> None:
    kept = set(_golden())
    missing = {stage for stage, files in FILES.items() if (stage, files[0]) not in kept}
    # A model is fetched, or random: the embedded study has none. Provenance is kept of one stage.
    assert missing == {"model", "every stage"}


@pytest.mark.parametrize(("stage", "model"), _golden(), ids=lambda value: getattr(value, "__name__", value))
def test_a_result_is_written_as_it_was_read(stage: str, model: type[ResultFile]) -> None:
    result = model.read(GOLDEN / stage)
    assert result.to_json() == (GOLDEN / stage / model.FILE).read_text()
    assert set(type(result).model_fields) - result.model_fields_set <= NOT_ALWAYS


@pytest.mark.parametrize(("stage", "model"), _golden(), ids=lambda value: getattr(value, "__name__", value))
def test_results_satisfy_the_published_schema(repository: Path, stage: str, model: type[ResultFile]) -> None:
    schema = json.loads((repository / "config" / "results.schema.json").read_text())
    owner = stage if model in FILES[stage] else "every stage"
    content = json.loads((GOLDEN / stage / model.FILE).read_text())
    jsonschema.validate({f"{owner}/{model.FILE}": content}, schema)


def test_schema_and_page_are_the_generated_ones(repository: Path) -> None:
    assert (repository / "config" / "results.schema.json").read_text() == results_schema_text(), (
        "run: effllm schema results --output config/results.schema.json"
    )
    assert (repository / "docs" / "reference" / "results.md").read_text() == results_page_text(), (
        "run: effllm schema results-page --output docs/reference/results.md"
    )


def test_every_key_is_described() -> None:
    definitions = json.loads(results_schema_text())["$defs"]
    undescribed = [
        f"{name}.{key}"
        for name, definition in definitions.items()
        for key, value in definition.get("properties", {}).items()
        if not value.get("description") and name != "Finding"
    ]
    assert undescribed == []


def _without(content: Any, *path: str) -> Any:
    head, *rest = path
    return {key: _without(value, *rest) if rest and key == head else value for key, value in content.items()
            if rest or key != head}  # fmt: skip


def _with(content: Any, value: Any, *path: str) -> Any:
    head, *rest = path
    return {**content, head: _with(content[head], value, *rest) if rest else value}


EVALUATION = json.loads((GOLDEN / "evaluate" / "evaluation.json").read_text())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (json.dumps(_without(EVALUATION, "cost", "threads")), "has no 'cost.threads': another version"),
        (json.dumps(_with(EVALUATION, "0.5", "score")), "is damaged or of another version: score is '0.5'"),
        (json.dumps(_with(EVALUATION, True, "items")), "is damaged or of another version: items is True"),
        (json.dumps(_with(EVALUATION, [0.1], "ci95")), r"is damaged or of another version: ci95 is \[0.1\]"),
        (json.dumps(_with(EVALUATION, float("nan"), "score")), "is damaged or of another version: score is nan"),
        ("[]", "is not a JSON object of this kind"),
        ('{"score": 1', "is not a JSON object of this kind"),
        ('{"task": "\\ud800"}', "is not a JSON object of this kind"),
        ('{"a":' * 5000, "is not a JSON object of this kind"),
    ],
    ids=["missing", "text", "bool", "short", "nan", "list", "cut", "surrogate", "deep"],
)
def test_a_foreign_file_is_one_sentence_with_file_key_and_remedy(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(UserError, match=rf"evaluation\.json {problem}.*; delete {tmp_path} and run again\.$") as error:
        Evaluation.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_text_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clusters\.json is missing: delete .* and run again"):
        Clusters.read(tmp_path)
    (tmp_path / "clusters.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="is not a JSON object of this kind"):
        Clusters.read(tmp_path)
    (tmp_path / "profile.json").mkdir()
    with pytest.raises(UserError, match=r"profile\.json cannot be read"):
        Profile.read(tmp_path)


def test_files_of_other_versions_are_read_where_today_asks_for_no_more(tmp_path: Path) -> None:
    """A key that came later is absent, one that is gone is passed over, and the file is written as it was."""
    older = {key: value for key, value in EVALUATION.items() if key not in ("clusters", "ignored_generation_settings")}
    older["telemetry"] = _without(older["telemetry"], "steal_fraction")
    (tmp_path / "evaluation.json").write_text(json.dumps(older | {"left_over": 1}))
    evaluation = Evaluation.read(tmp_path)
    assert evaluation.clusters is None and evaluation.ignored_generation_settings == {}
    value, reason = evaluation.telemetry.cell("steal_fraction")
    assert value is None and "earlier version" in str(reason)
    assert json.loads(evaluation.to_json()) == older


def test_a_figure_that_is_null_says_why() -> None:
    summary = TelemetrySummary(
        status="ok",
        reason=None,
        windows=1,
        duration_s=1.0,
        util_cpu=0.5,
        energy_j=None,
        reasons={"energy_j": "no meter"},
    )
    assert summary.cell("util_cpu") == (0.5, None)
    assert summary.cell("energy_j") == (None, "no meter")
    with pytest.raises(AttributeError):
        summary.cell("no_such_figure")


def test_a_result_with_a_key_that_no_reader_knows_or_a_nan_cannot_be_made() -> None:
    weights = {"bytes": 1, "quantized_layers": 0, "quantized_layers_bytes": None, "quantized_layers_bytes_16_bit": None}
    with pytest.raises(ValueError, match="extra"):
        Quantization(nominal_bits=16, precision={}, weights=weights, unsocred="misspelt")
    quality = json.loads((GOLDEN / "pretrain" / PretrainingQuality.FILE).read_text())
    with pytest.raises(ValueError, match="finite"):
        PretrainingQuality(**quality | {"held_out_loss": float("nan")})
    assert Efficiency.read(GOLDEN / "pretrain").steps > 0
