"""Workloads whose prompts have images: what the model gets, what is timed apart, and what models of text say."""

import contextlib
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.errors import CellFailure
from effllm.models.vision_language.flops import ImageFlops
from effllm.profiling.decoding import Generation, TimedDecoding
from effllm.profiling.figures import ModelCost, latency_figures, utilization_figures, vision_figures
from effllm.profiling.images import ImagePrompts, SequenceImages, TimedEncoding
from effllm.profiling.inference import measure
from effllm.results.telemetry import TelemetrySummary
from effllm.study.evaluation import InferenceProtocol, Workload
from tests.unit.models.vision import FAMILIES, Family

WORKLOAD = Workload(prompt_tokens=6, new_tokens=3, batch_size=2, images=2, image_size=16)
TEXT = {"prompt_tokens": 6, "new_tokens": 2}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    family = Family(request.param, tmp_path_factory.mktemp(request.param))
    family.model.name_or_path = str(family.directory)
    return family


class _Windows:
    """Stands for telemetry."""

    def window(self, name: str) -> Any:
        return contextlib.nullcontext()


def _protocol(workloads: dict[str, Any]) -> InferenceProtocol:
    return InferenceProtocol.model_validate(
        {
            "workloads": workloads,
            "idle_s": 0.001,
            "warmup_maximum": 3,
            "repeats": 2,
            "minimum_window_s": 0.001,
            "cooldown_s": 0,
            "maximum_relative_interval": 9,
        }
    )


def test_a_prompt_is_its_images_and_its_text_and_what_generates_sees_them(family: Family) -> None:
    prompts = ImagePrompts(family.model, family.tokenizer, 0)
    one = family.processing.tokens(16, 16)
    marks = len(family.tokenizer(family.processing.marker, add_special_tokens=False)["input_ids"]) - 1
    assert prompts.of(WORKLOAD).tokens == 2 * one
    # A text that has the image token by chance.
    text = torch.full((2, 6), family.processing.token_id)
    prompt = prompts.prompt(text, WORKLOAD, "cpu")
    assert prompt.ids.shape == (2, 2 * (one + marks) + 6)
    assert ((prompt.ids == family.processing.token_id).sum(1) == 2 * one).all()
    with torch.inference_mode():
        logits = family.model(input_ids=prompt.ids, **prompt.given).logits[:, -1]
        blank = prompt.given | {"pixel_values": torch.zeros_like(prompt.given["pixel_values"])}
        other = family.model(input_ids=prompt.ids, **blank).logits[:, -1]
    assert (logits - other).abs().max() > 1e-3
    timed = TimedDecoding(family.model, prompt.ids, 3, "cpu", prompt.given)
    assert timed.run().generated_tokens == 6
    with torch.inference_mode():
        said = family.model.generate(prompt.ids, generation_config=timed.config, **prompt.given)
    assert torch.equal(said[:, prompt.ids.shape[1]], logits.argmax(-1)) or family.model.config.eos_token_id in said
    encoded = TimedEncoding(family.model, prompt.given, "cpu").run()
    assert encoded.first_token_s > 0 and (encoded.token_s, encoded.generated_tokens) == ([], 0)


def test_images_are_measured_beside_text_and_a_long_prompt_counts_them(family: Family) -> None:
    images = {"images": 1, "image_size": 16}
    protocol = _protocol({"text": TEXT, "image": TEXT | images, "many": TEXT | images | {"images": 60}})
    prompts = ImagePrompts(family.model, family.tokenizer, 0)
    measured, refused = measure(family.model, protocol, ["cpu"], _Windows(), "x", prompts)
    assert {(id, phase) for id, phase in measured.windows} == {
        ("text", "generate"), ("text", "prefill"), ("image", "generate"), ("image", "prefill"), ("image", "vision"),
    }  # fmt: skip
    assert "256 positions" in refused["many"].reason


def test_a_model_of_text_is_unsupported_there_and_measured_elsewhere() -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    protocol = _protocol({"text": TEXT, "image": TEXT | {"images": 1, "image_size": 16}})
    measured, refused = measure(model, protocol, ["cpu"], _Windows(), "x", ImagePrompts(model, None, 0))
    assert set(measured.windows) == {("text", "generate"), ("text", "prefill")}
    assert refused["image"].status == "unsupported" and "a llama reads text alone" in refused["image"].reason
    with pytest.raises(CellFailure, match=r"workload image: .*reads text alone"):
        measure(
            model,
            _protocol({"image": TEXT | {"images": 1, "image_size": 16}}),
            ["cpu"],
            _Windows(),
            "x",
            ImagePrompts(model, None, 0),
        )


def test_the_time_to_the_first_token_is_told_in_two_parts() -> None:
    images = SequenceImages(count=2, tokens=50, flops=1000)
    figures = latency_figures([[Generation(0.2, [0.1, 0.1], 6)]] * 2, WORKLOAD, images)
    assert figures.prefill_tokens_per_s == pytest.approx(2 * (6 + 50) / 0.2)
    telemetry = TelemetrySummary(status="ok", reason=None, windows=2, duration_s=1.0, energy_j=24.0, reasons={})
    runs = [[Generation(0.05, [], 0)] * 3] * 2
    vision = vision_figures(runs, figures, telemetry, WORKLOAD, images)
    assert vision.encode_ms_p50 == pytest.approx(50)
    assert vision.language_first_token_ms_p50 == pytest.approx(150)
    # Six runs of two sequences with two images each.
    assert vision.energy_j_per_image == pytest.approx(1.0)
    assert vision.encode_flops == 2000
    none = vision_figures(runs, figures, telemetry.model_copy(update={"energy_j": None}), WORKLOAD, images)
    assert none.cell("energy_j_per_image") == (None, "the telemetry does not say why")


def test_a_prefill_has_the_flops_of_text_and_images_and_decoding_reads_no_tower(family: Family) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = family.model
    workload = Workload(prompt_tokens=6, new_tokens=2, images=1, image_size=16)
    prompts = ImagePrompts(model, family.tokenizer, 0)
    images = prompts.of(workload)
    assert images.flops == sum(ImageFlops(model, model.config).forward(images.tokens))
    prompt = prompts.prompt(torch.ones((1, 6), dtype=torch.long), workload, "cpu")
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=prompt.ids, logits_to_keep=1, **prompt.given)
    figures = latency_figures([[Generation(0.2, [0.1], 2)]] * 2, workload, images)
    weights = 4 * model.num_parameters()
    text = ("model.language_model.", "lm_head.")
    vision = sum(weight.nbytes for name, weight in model.named_parameters() if not name.startswith(text))
    cost = ModelCost(model.config, weights, torch.float32, "NVIDIA H200", vision_bytes=vision)
    found = utilization_figures(figures, workload, cost, images)
    # The marks around the image are no tokens of the workload.
    assert found.prefill_flops == pytest.approx(counter.get_total_flops(), rel=0.06)
    read_whole = ModelCost(model.config, weights, torch.float32, "NVIDIA H200")
    whole = utilization_figures(figures, workload, read_whole, images)
    assert whole.decode_bytes_per_step - found.decode_bytes_per_step == vision


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"images": 1}, "image_size is missing beside images"),
        ({"image_size": 16}, "images is missing beside image_size"),
        ({"images": 1, "image_size": 16, "cuda_graph": True}, "a graph of decoding is of text alone"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Workload.model_validate(TEXT | keys)


def test_workloads_of_text_are_what_they_were() -> None:
    assert Workload.model_validate(TEXT).plain() == TEXT | {"batch_size": 1, "cuda_graph": False}
    assert Workload.model_validate(TEXT).prompt_tokens_at_most == 6
    # LLaVA's 576 tokens for a small image, a token a patch of 14 pixels for a large one.
    small, large = (WORKLOAD.model_copy(update={"image_size": size}) for size in (16, 1008))
    assert (small.prompt_tokens_at_most, large.prompt_tokens_at_most) == (6 + 2 * 576, 6 + 2 * 5184)
