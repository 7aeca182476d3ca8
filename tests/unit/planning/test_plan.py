"""A plan says what it knows and how, and nothing else."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effllm.cli import main
from effllm.cluster.requests import GPU_STAGES
from effllm.errors import UserError
from effllm.models.costs import training_flops
from effllm.models.costs.shapes import shape_of
from effllm.planning.estimate import Assumptions
from effllm.planning.nodes import targets_of
from effllm.planning.plan import Plan, plan_of
from effllm.stages.graph import Graph
from tests.unit.planning.conftest import H100, HUB_MODEL, build, training_records

Study = dict[str, Any]
GraphOf = Callable[[Study], Graph]
PEAK = 989e12


def _node(plan: Plan, name: str) -> Any:
    return next(node for node in plan.nodes if node.name == name)


def _flops(graph: Graph, id: str) -> float:
    run = graph.study.pretraining[id]
    shape = shape_of(run.architecture, 2048)
    return run.max_steps * run.global_batch_size * training_flops(shape, run.sequence_length)


def test_without_device_and_earlier_runs_no_time_of_training_is_given(study: Study, graph_of: GraphOf) -> None:
    plan = plan_of(graph_of(study))
    assert plan.device is None
    assert plan.device_hours.value is None and plan.energy_j.value is None and plan.wall_s.value is None
    trained = _node(plan, "pretrain/llama-1m")
    assert trained.device_s.value is None and "--device" in trained.device_s.source
    for node in plan.nodes:
        # What the processor does has shipped rates; those of devices need a device.
        assert node.wall_s.basis in (None, "computed") if node.devices else node.wall_s.basis == "reference"
        assert node.disk_b.basis in (None, "computed", "reference")


def test_a_device_alone_gives_shipped_rates_and_says_how_far_they_are_taken(study: Study, graph_of: GraphOf) -> None:
    plan = plan_of(graph_of(study), device=H100)
    figure = _node(plan, "pretrain/llama-1m").device_s
    assert figure.basis == "reference" and "good for" in figure.rate
    assert "no run of llama was measured" in figure.beyond and figure.beyond in figure.source
    assert plan.device_hours.value is not None and set(plan.device_hours.by_basis) == {"reference"}


def test_a_device_without_peaks_has_no_shipped_rate(study: Study, graph_of: GraphOf) -> None:
    for device in ("NVIDIA Q1", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        plan = plan_of(graph_of(study), device=device, device_memory_b=10e9)
        assert plan.device_hours.value is None and plan.energy_j.value is None
        assert "table of peaks" in _node(plan, "pretrain/llama-1m").device_s.source


def test_an_assumed_mfu_gives_device_hours_that_are_called_assumed(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    plan = plan_of(graph, ["pretrain/llama-1m"], device=H100, assumptions=Assumptions(mfu=0.4, power_w=700))
    node = _node(plan, "pretrain/llama-1m")
    assert node.device_s.basis == node.energy_j.basis == "assumed"
    assert node.device_s.value == pytest.approx(_flops(graph, "llama-1m") / (PEAK * 0.4))
    assert node.energy_j.value == pytest.approx(700 * node.device_s.value)
    assert plan.device_hours.value == pytest.approx(node.device_s.value / 3600)


def test_the_rate_of_an_earlier_run_comes_before_the_assumption(study: Study, graph_of: GraphOf) -> None:
    """Twice the steps take twice the measured step time, and the overhead once."""
    graph = graph_of(study)
    build(graph, "pretrain/llama-1m", training_records(0.1, power_w=300), wall_s=0.1 * 480 + 25)
    after = copy.deepcopy(study)
    after["pretraining"]["llama-1m"]["max_steps"] = 960
    plan = plan_of(graph_of(after), ["pretrain/llama-1m"], assumptions=Assumptions(mfu=0.4, power_w=700))
    node = _node(plan, "pretrain/llama-1m")
    assert plan.device == H100 and plan.device_source == "of earlier builds"
    assert node.wall_s.basis == node.energy_j.basis == "measured"
    assert "pretrain/llama-1m" in node.wall_s.source
    assert node.wall_s.value == pytest.approx(960 * 0.1 + 25)
    assert node.energy_j.value == pytest.approx(300 * node.wall_s.value)


def test_rates_of_another_device_say_nothing(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    build(graph, "pretrain/llama-1m", training_records(0.1))
    figure = _node(plan_of(graph, device="NVIDIA H200"), "pretrain/qwen2-1m").device_s
    assert figure.basis == "reference"


def test_power_that_was_not_measured_leaves_energy_unknown(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    build(graph, "pretrain/llama-1m", training_records(0.1, power_w=None))
    node = _node(plan_of(graph, ["pretrain/qwen2-1m"]), "pretrain/qwen2-1m")
    assert node.device_s.value is not None
    assert node.energy_j.value is None and "--assume-power-w" in node.energy_j.source


def test_what_is_built_costs_nothing(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    build(graph, "tokens/python-docs")
    plan = plan_of(graph, ["pretrain/llama-1m"])
    assert [node.name for node in plan.nodes] == ["pretrain/llama-1m"]
    assert plan.stages["tokens"] == {"nodes": 1, "cached": 1, "absent": 0, "to_do": 0}


def test_nodes_that_cannot_fit_are_named(study: Study, graph_of: GraphOf) -> None:
    study["pretraining"]["llama-1m"] |= {"parallel": {"strategy": "ddp", "devices": 2}, "micro_batch_size": 2}
    assert "needs 2 devices" in plan_of(graph_of(study), device=H100).wont_fit["pretrain/llama-1m"]
    plan = plan_of(graph_of(study), device=H100, device_memory_b=2e7)
    assert "of device memory" in plan.wont_fit["pretrain/qwen2-1m"]
    # Its weights fit; whether the longest input does depends on the benchmark.
    assert "at the longest input" in plan.risks["evaluate/llama-1m.bfloat16.word-order"]
    assert not plan_of(graph_of(study), device=H100, gpus=2).wont_fit


def test_the_stages_that_hold_a_device_are_those_that_ask_a_cluster_for_one(tiny: Study, graph_of: GraphOf) -> None:
    plan = plan_of(graph_of(tiny))
    assert {node.stage for node in plan.nodes if node.devices} == {
        stage for stage in GPU_STAGES if plan.stages.get(stage)
    }


def test_a_graph_of_unknown_times_has_a_lower_bound(study: Study, graph_of: GraphOf) -> None:
    plan = plan_of(graph_of(study), device="NVIDIA Q1", device_memory_b=80e9)
    assert plan.wall_s.value is None and "unknown" in plan.wall_s.source
    assert 0 < plan.wall_least_s <= sum(node.wall_s.value or 0 for node in plan.nodes) * (1 + 1e-9)


def test_the_shape_of_a_hub_model_is_unknown_with_the_remedy(study: Study, graph_of: GraphOf) -> None:
    study["models"] = {"hub": HUB_MODEL}
    study["tables"]["table9"]["models"] = ["hub"]
    plan = plan_of(graph_of(study))
    for name, key in (("model/hub", "disk_b"), ("quantize/hub.int4", "disk_b"), ("profile/hub.int4", "memory_b")):
        figure = getattr(_node(plan, name), key)
        assert figure.value is None
        assert "a/b" in figure.source and "--fetch" in figure.source
    # The protocol's own windows need no shape.
    assert _node(plan, "profile/hub.int4").wall_s.value > 0


def test_a_hub_model_that_was_built_is_read(study: Study, graph_of: GraphOf) -> None:
    study["models"] = {"hub": HUB_MODEL}
    study["tables"]["table9"]["models"] = ["hub"]
    graph = graph_of(study)
    config = json.loads(training_records(1.0)["model/config.json"]) | {"dtype": "bfloat16"}
    build(graph, "model/hub", {"model/config.json": json.dumps(config)})
    plan = plan_of(graph)
    assert _node(plan, "quantize/hub.bfloat16").disk_b.value == 2 * (
        4 * (3 * 128 * 384 + 3 * 128**2 + 256) + 128 + 2048 * 128
    )


def test_fetching_offline_says_so(study: Study, graph_of: GraphOf) -> None:
    study["models"] = {"hub": HUB_MODEL}
    study["tables"]["table9"]["models"] = ["hub"]
    figure = _node(plan_of(graph_of(study), fetch=True), "model/hub").disk_b
    assert figure.value is None
    assert (
        "config.json of a/b cannot be fetched" in figure.source and "HF_HUB_OFFLINE is set: unset it" in figure.source
    )


def test_a_finetuned_table_is_planned_from_its_suite(tiny: Study, graph_of: GraphOf) -> None:
    plan = plan_of(graph_of(tiny), ["table7"])
    tuned = {node.name: node for node in plan.nodes if node.stage == "finetune"}
    assert tuned
    full, lora = (next(n for name, n in tuned.items() if name.endswith(end)) for end in (".full", ".lora"))
    assert full.memory_b.value > lora.memory_b.value
    assert full.disk_b.value > lora.disk_b.value


@pytest.mark.parametrize("target", ["table9", "table9.csv", "results/table9.csv", "quantize/llama-1m.int4"])
def test_targets_may_be_written_short_or_as_for_snakemake(study: Study, graph_of: GraphOf, target: str) -> None:
    graph = graph_of(study)
    assert len(targets_of(graph, [target.replace("results", graph.results)])) == 1


def test_the_report_is_of_the_tables_that_are_there(study: Study, graph_of: GraphOf) -> None:
    graph = graph_of(study)
    assert set(targets_of(graph, ["results/report.html".replace("results", graph.results)])) == set(targets_of(graph))
    Path(graph.results).mkdir(exist_ok=True)
    Path(graph.results, "table9.csv").touch()
    assert targets_of(graph, ["report.html"]) == []
    assert targets_of(graph, ["table9", "report.html"]) == ["table9.csv"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("table10", "did you mean 'table9'"),
        ("quantise/llama-1m.int4", "did you mean 'quantize'"),
        ("quantize/lama-1m.int4", "did you mean 'llama-1m.int4'"),
    ],
)
def test_a_typo_in_a_target_is_named(study: Study, graph_of: GraphOf, target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        targets_of(graph_of(study), [target])


def test_the_command_prints_what_is_assumed_and_fails_for_what_cannot_fit(
    study: Study, write_study: Callable[[Study], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--study", str(write_study(study)), "--results", str(tmp_path / "results"), "--device", H100]
    with pytest.raises(SystemExit) as end:
        main(["plan", *arguments, "--assume-mfu", "0.4", "--device-memory-gb", "0.02"])
    printed = capsys.readouterr().out
    assert end.value.code == 1
    assert "Assumed: mfu 0.4" in printed and "Cannot fit" in printed and "pretrain/llama-1m needs" in printed
    with pytest.raises(SystemExit) as end:
        main(["plan", *arguments, "--json", "table9"])
    content = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    assert content["device_hours"]["by_basis"].keys() == {"reference"} and content["assumptions"]["mfu"] is None
    assert {node["stage"] for node in content["nodes"]} >= {"pretrain", "quantize", "evaluate", "profile"}


@pytest.mark.parametrize(
    ("option", "value"),
    [("--assume-mfu", "1.2"), ("--gpus", "0"), ("--device", "GPU"), ("--device", "NVIDIA H100 80GB HBM3 MIG 1g.10gb")],
)
def test_impossible_options_are_refused_with_a_sentence(
    study: Study,
    write_study: Callable[[Study], Path],
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "--study", str(write_study(study)), option, value])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith(f"error: {option} ") and value in error
