"""Rates that ship with the package: those of the published tables, for what they were measured on."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from effllm.models.costs import parameter_count, training_flops
from effllm.planning.plan import Plan, plan_of
from effllm.planning.reference.pretraining import START_S, nearest_rate, pretraining
from effllm.planning.reference.rates import rows
from effllm.stages.graph import Graph
from effllm.study import load_study, parse_study
from tests.conftest import REPOSITORY

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
STUDY = load_study(REPOSITORY / "config" / "single-gpu-shapes.yaml")


def table(number: int) -> list[dict[str, str]]:
    return list(csv.DictReader((REPOSITORY / f"docs/results/h100/table{number}.csv").read_text().splitlines()))


TRAINED = {row["runs"]: row for number in (3, 4, 5, 6) for row in table(number)}
TUNED = {row["run"]: row for row in table(7)}


def config(id: str) -> dict[str, Any]:
    return STUDY.pretraining[id].plain()


def node_of(plan: Plan, name: str) -> Any:
    return next(node for node in plan.nodes if node.name == name)


@pytest.mark.parametrize("id", sorted(TRAINED))
def test_a_measured_run_is_planned_by_its_own_rate(id: str) -> None:
    rate, beyond = nearest_rate(config(id), float(TRAINED[id]["parameters_total"]))
    assert (rate.run, rate.mfu, beyond) == (id, float(TRAINED[id]["mfu"]), None)
    assert rate.power_w == float(TRAINED[id]["AEC_W"]) and rate.device == H100


def test_what_was_not_measured_says_so() -> None:
    own = config("gqa-1.5b")
    for parameters in (3e6, 100e9):
        _, beyond = nearest_rate(own, parameters)
        assert beyond is not None and "the model has" in beyond
    _, beyond = nearest_rate(own | {"architecture": own["architecture"] | {"attention": "other"}}, 1.5e9)
    assert beyond is not None and "no run of effllm/other" in beyond
    nearer, beyond = nearest_rate(own | {"sequence_length": 3000}, 1.5e9)
    assert nearer.run == "gqa-1.5b-2k" and beyond is None


def test_the_plan_of_a_training_takes_what_the_tables_took(tmp_path: Path) -> None:
    graph = Graph(STUDY, str(tmp_path))
    names = ["pretrain/mla-1.5b", "finetune/llama-3.2-1b.random.dora"]
    on_h100, on_a100 = (plan_of(graph, names, device=device) for device in (H100, A100))
    rows_of = ((names[0], TRAINED["mla-1.5b"], START_S), (names[1], TUNED["llama-3.2-1b.random.dora"], 8.0))
    for name, row, start_s in rows_of:
        node, other = node_of(on_h100, name), node_of(on_a100, name)
        assert node.wall_s.basis == node.energy_j.basis == "reference" and node.wall_s.beyond is None
        # Thirteen steps at the time of one that was published, and the start.
        steps_s = 13 * float(row["AL_s_per_iter"])
        assert node.wall_s.value - steps_s == pytest.approx(start_s, abs=0.1)
        assert node.energy_j.value == pytest.approx(node.wall_s.value * float(row["AEC_W"]), rel=1e-3)
        assert other.wall_s.value - start_s == pytest.approx((node.wall_s.value - start_s) * 989 / 312)
        assert other.energy_j.value is None and other.energy_j.source.endswith("--assume-power-w")


@pytest.mark.parametrize(("name", "seconds"), [("1.5b.bfloat16", 181), ("7b.bfloat16", 193), ("7b.int4", 191)])
def test_the_plan_of_a_profile_takes_what_it_took(tmp_path: Path, name: str, seconds: float) -> None:
    """Of the published runs, started to published as provenance.json has them; their libraries were loaded before."""
    plan = plan_of(Graph(STUDY, str(tmp_path)), [f"profile/qwen2.5-{name}", f"quantize/qwen2.5-{name}"], device=H100)
    node = node_of(plan, f"profile/qwen2.5-{name}")
    assert node.wall_s.value == pytest.approx(seconds, rel=0.25)
    # The protocol alone is less than that.
    assert node.wall_s.value > 3 + 4 * 10 * 3.2
    cells = {f"{row['run']}": float(row["seconds"]) for row in rows("quantize")}
    quantized = node_of(plan, f"quantize/qwen2.5-{name}").wall_s.value
    assert quantized == pytest.approx(cells[f"qwen2.5-{name}"], rel=0.02)


def test_a_profile_pays_for_each_length_of_a_growing_cache_once(tmp_path: Path) -> None:
    def planned_s(**workloads: object) -> tuple[float, float]:
        study = STUDY.plain()
        # Windows of one generation: what is left grows with the workloads alone.
        study["inference"] |= {"workloads": workloads, "minimum_window_s": 0.001, "repeats": 2, "cooldown_s": 0}
        study["tables"] = {"table9": study["tables"]["table9"] | {"workload": "a"}}
        plan = plan_of(Graph(parse_study(study, "test"), str(tmp_path)), ["profile/qwen2.5-1.5b.bfloat16"], device=H100)
        figure = node_of(plan, "profile/qwen2.5-1.5b.bfloat16").wall_s
        said = re.search(r"up to ([\d,]+) s more", figure.source)
        assert figure.value is not None and said is not None, figure
        return figure.value, float(said[1])

    short, long = ({"prompt_tokens": 512, "new_tokens": tokens} for tokens in (128, 256))
    one, noisy = planned_s(a=short)
    # Two windows and three warm-ups of 128 steps of 18.63 ms each and of a prompt, 127 new lengths; three more at most.
    generations_s = 5 * (127 * 0.0186301 + 2 * 0.0186301)
    assert one == pytest.approx(3 + 2.06 + 3 + generations_s + 127 * 0.068, abs=0.2)
    assert noisy == pytest.approx(3 / 5 * generations_s, abs=1)
    other = planned_s(a=short, b=short)[0] - one
    assert other == pytest.approx(generations_s, abs=0.1)
    assert planned_s(a=short, b=long)[0] - one - other == pytest.approx(128 * (5 * 0.0186301 + 0.068), abs=0.1)
    assert planned_s(a=short, b=short | {"batch_size": 2})[0] - one - other == pytest.approx(127 * 0.068, abs=0.1)
    assert planned_s(a=short, b=short | {"cuda_graph": True})[0] - one < 5 * 0.7


def test_serving_is_planned_by_the_steps_of_the_measured_engine(tmp_path: Path) -> None:
    study = STUDY.plain()
    chat = {
        "engine": {"kind": "transformers", "cache_gb": 12.0, "max_batch_tokens": 2048},
        "load": {
            "arrivals": {"kind": "poisson"},
            "prompt_tokens": {"kind": "fixed", "tokens": 512},
            "output_tokens": {"kind": "uniform", "least": 50, "most": 150},
        },
        "saturation": {"concurrency": 32, "maximum_concurrency": 256, "gain": 0.9, "rounds": 3},
        "fractions": [0.5, 1.0],
        "requests": 80,
        "warmup_requests": 20,
        "compared_requests": 2,
        "idle_s": 7.0,
        "cooldown_s": 1.0,
    }
    server = chat | {"engine": {"kind": "server", "url": "http://127.0.0.1:8000", "version": "1"}}
    replay = {key: value for key, value in chat.items() if key != "saturation"}
    trace = {"format": "effllm", "path": str(tmp_path / "t"), "most_prompt_tokens": 9, "most_output_tokens": 9}
    replay["load"] = {"arrivals": {"kind": "replayed"}, "trace": trace}
    (tmp_path / "t").touch()
    study["serving"] = {"chat": chat, "server": server, "replay": replay}
    names = [f"serve/qwen2.5-1.5b.bfloat16.{id}" for id in study["serving"]]
    others = ["serve/qwen2.5-1.5b.int4.chat", "serve/qwen2.5-7b.bfloat16.chat"]
    plan = plan_of(Graph(parse_study(study, "test"), str(tmp_path)), [*names, *others], device=H100)
    figure, by_server, of_trace = (node_of(plan, name).wall_s for name in names)
    measured = json.loads((REPOSITORY / "docs/results/h100/serving-engine.json").read_text())["rows"][0]
    few_s, step_s = measured["bare"]["eager_ms"] / 1e3, measured["engine"]["decode"]["step_ms"] / 1e3
    prompt_s = measured["engine"]["mixed"]["step_ms"] / 1e3 / 4

    def together_s(count: int) -> float:
        return count * prompt_s + 100 * (few_s + (step_s - few_s) * count / 64)

    # The second loop has 1.4 times the rate of the first, less than the gain that is asked for.
    loops = [together_s(32), together_s(64)]
    best = 64 / loops[1]
    expected = 10 + 3.087 / 1.5 + 7 + 2 * 100 * (few_s + (step_s - few_s) / 64) + loops[0]
    expected += sum(1 + 3 * each for each in loops) + sum(1 + 100 / (part * best) for part in (0.5, 1.0))
    assert figure.value == pytest.approx(expected, abs=0.2)
    assert figure.beyond is None and node_of(plan, names[0]).energy_j.value == pytest.approx(228.826 * figure.value)
    packed, large = (
        node_of(plan, f"serve/{name}.chat").wall_s for name in ("qwen2.5-1.5b.int4", "qwen2.5-7b.bfloat16")
    )
    assert packed.beyond == "no serving of gptq was measured" and large.beyond == "the model has 7.6B parameters"
    assert large.value > figure.value
    assert by_server.value is None and by_server.source == "how fast a server is, is known once it has served"
    assert of_trace.value is None and "is known once it was read" in of_trace.source


def test_beyond_its_range_a_rate_follows_what_size_did_to_plain_decoders() -> None:
    small = load_study(REPOSITORY / "config" / "one-gpu.yaml").pretraining["mla-50m"].plain()
    planned = pretraining(small, 48e6, 1e18, H100)
    mfu = {rate["run"]: float(rate["mfu"]) for rate in rows("pretrain")}
    expected = mfu["mla-1.5b-2k"] * mfu["gqa-50m"] / mfu["gqa-1.5b-2k"]
    assert planned is not None and planned.beyond == "the model has 48M parameters"
    assert planned.seconds - START_S == pytest.approx(1e18 / (989e12 * expected))


def test_a_precision_that_was_not_measured_is_taken_for_one_that_works_alike(tmp_path: Path) -> None:
    study = load_study(REPOSITORY / "config" / "one-gpu.yaml").plain()
    study["precisions"] = {
        "awq": {"kind": "awq", "group_size": 128, "calibration": study["precisions"]["int4"]["calibration"]},
        "nf4": {"kind": "bnb", "format": "nf4"},
        "bfloat16": study["precisions"]["bfloat16"],
    }
    study["tables"] = {"table9": study["tables"]["table9"] | {"precisions": ["bfloat16", "awq", "nf4"]}}
    plan = plan_of(Graph(parse_study(study, "test"), str(tmp_path)), device=H100)
    for precision, kind, like in (("awq", "awq", "int4"), ("nf4", "bnb", "bfloat16")):
        quantized = node_of(plan, f"quantize/qwen2.5-7b.{precision}").wall_s
        assert f"qwen2.5-7b.{like}" in quantized.rate and quantized.beyond == f"no {kind} was measured"
        profiled = node_of(plan, f"profile/qwen2.5-7b.{precision}").wall_s
        assert "qwen2.5-7b.int4" in profiled.rate and f"no decoding of {kind} was measured" in profiled.beyond


def test_diffusion_is_planned_by_the_nearest_measured_transformer(tmp_path: Path) -> None:
    study = load_study(REPOSITORY / "config" / "one-gpu.yaml").plain()
    study["diffusion"]["dit-l8-nsa"]["architecture"]["feed_forward"] = "moe"
    study["diffusion"]["dit-b4"]["micro_batch_size"] = 32
    plan = plan_of(Graph(parse_study(study, "test"), str(tmp_path)), ["table10"], device=H100)
    plain = node_of(plan, "diffuse/dit-b4-mqa").wall_s
    # 8,000 steps of 256 images at the 63.0 ms that were measured, and the start.
    assert plain.value == pytest.approx(8000 * 0.06299 + 10, rel=1e-3) and plain.beyond is None
    assert node_of(plan, "diffuse/dit-b4").wall_s.beyond == "32 images at a time, not 256"
    assert "no run of nsa with moe was measured" in node_of(plan, "diffuse/dit-l8-nsa").wall_s.beyond
    drawn = node_of(plan, "sample/dit-b4.imagenet")
    assert drawn.wall_s.beyond == "sampling was not measured" and "of decoding" in drawn.wall_s.source
    # Three seeds of 5,000 images of 3 x 256 x 256; two views of 50,000 images as 4 x 32 x 32 numbers of two bytes.
    assert drawn.disk_b.value == 3 * 5000 * 3 * 256**2
    encoded = node_of(plan, "latents/imagenet-latents")
    assert encoded.disk_b.value == 2 * 50_000 * 4 * 32**2 * 2 and encoded.disk_b.basis == "reference"


def test_rates_are_those_of_the_committed_results() -> None:
    small = json.loads((REPOSITORY / "docs/results/h100/small-shapes.json").read_text())["training"]
    by_run = {row["run"]: row for row in rows("pretrain")}
    for run, figures in small.items():
        assert float(by_run[run]["mfu"]) == pytest.approx(figures["mfu"], rel=1e-5)
        assert int(by_run[run]["parameters"]) == figures["parameters"]
    for row in rows("finetune"):
        assert row["tokens_per_s"] == TUNED[row["run"]]["tokens_per_s"] and row["power_w"] == TUNED[row["run"]]["AEC_W"]
    graphs = {float(row["first_token_ms_p50"] or 0): row for row in table(9)}
    for row in rows("decoding"):
        assert row["graph_token_ms"] == graphs[float(row["graph_prefill_ms"])]["token_ms_p50"]
    steps = json.loads((REPOSITORY / "docs/results/h100/dit.json").read_text())["variants"]
    for row in rows("diffuse"):
        _, size, variant = row["run"].split("-", 2)
        figures = steps[f"{size[:-1].upper()}/{size[-1]} {variant}"]
        assert float(row["mfu"]) == pytest.approx(figures["mfu"], rel=1e-5)
        assert (int(row["parameters"]), int(row["images"])) == (figures["parameters"], figures["images_per_step"])
    scored = json.loads((REPOSITORY / "docs/results/h100/scoring.json").read_text())
    (row,) = rows("scoring")
    assert float(row["seconds"]) == pytest.approx(scored["ways"]["effllm"]["wall_s"])
    assert float(row["prompt_tokens"]) == scored["prompt_tokens_median"] and int(row["items"]) == scored["items"]


@pytest.mark.parametrize("study", ["one-gpu", "node"])
def test_a_shipped_study_is_planned_in_full(tmp_path: Path, study: str) -> None:
    """Without the hub and without a history: every total has a value, but the bytes that the hub alone knows."""
    gpus = 8 if study == "node" else 1
    plan = plan_of(Graph(load_study(REPOSITORY / "config" / f"{study}.yaml"), str(tmp_path)), gpus=gpus, device=H100)
    for total in (plan.device_hours, plan.energy_j, plan.disk_b):
        assert total.value is not None and set(total.by_basis) <= {"reference", "computed"}
    assert plan.wall_s.value is not None and not plan.wont_fit and not plan.risks
    # Little more than a day, and a weekend from Friday's evening to Monday's morning.
    assert plan.wall_s.value < {"one-gpu": 30, "node": 60}[study] * 3600
    assert plan.download_b.known > 20e9 and set(plan.download_b.unknown) == {
        "sizes are the hub's to tell: give --fetch"
    }
    assert all(node.wall_s.rate or node.wall_s.basis != "reference" for node in plan.nodes)


def test_shipped_shapes_have_the_published_numbers_of_parameters() -> None:
    published = {
        "Qwen/Qwen2.5-0.5B": 494_032_768,
        "Qwen/Qwen2.5-7B": 7_615_616_512,
        "Qwen/Qwen2.5-72B": 72_706_203_648,
        "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
        "Qwen/Qwen2.5-32B": 32_763_876_352,
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
        "meta-llama/Llama-3.2-1B": 1_235_814_400,
        "meta-llama/Llama-3.1-8B": 8_030_261_248,
        "microsoft/Phi-3.5-mini-instruct": 3_821_079_552,
        "microsoft/phi-4": 14_659_507_200,
        "01-ai/Yi-34B": 34_388_917_248,
    }
    shapes = json.loads((REPOSITORY / "effllm/planning/hub_shapes.json").read_text())["models"]
    counted = {
        repo: parameter_count(AutoConfig.for_model(**shapes[repo], pad_token_id=None)).total for repo in published
    }
    assert counted == published


def test_a_model_larger_than_a_gpu_is_planned_over_as_many_as_hold_it(tmp_path: Path) -> None:
    graph = Graph(load_study(REPOSITORY / "config" / "precisions.yaml"), str(tmp_path))
    targets = ["profile/qwen2.5-72b.bfloat16", "profile/qwen2.5-72b.int4"]
    plan = plan_of(graph, targets, gpus=4, device=H100)
    whole, packed = (next(node for node in plan.nodes if node.name == name) for name in targets)
    # 145 GB and the caches of the largest batch, by 0.9 of 80 GB.
    assert (whole.devices, packed.devices) == (3, 1)
    assert whole.memory_b is not None and whole.memory_b.value is not None and whole.memory_b.value < 72e9
    assert whole.device_s is not None and whole.wall_s.value is not None
    assert whole.device_s.value == 3 * whole.wall_s.value
    assert not plan.wont_fit
    (refused,) = plan_of(graph, targets, gpus=1, device=H100).wont_fit.values()
    assert refused == "needs 3 devices, and there are 1: give --gpus 3 or more"


def test_full_fine_tuning_has_the_share_of_the_peak_that_its_row_states() -> None:
    from effllm.planning.reference.finetuning import _FULL_MFU

    shapes = json.loads((REPOSITORY / "effllm/planning/hub_shapes.json").read_text())["models"]
    shape = AutoConfig.for_model(**shapes["meta-llama/Llama-3.2-1B"], pad_token_id=None)
    row = TUNED["llama-3.2-1b.random.full"]
    mfu = float(row["tokens_per_s"]) * training_flops(shape, 2048) / 2048 / 989e12
    assert float(row["mfu"]) == _FULL_MFU == pytest.approx(mfu, rel=1e-3)
