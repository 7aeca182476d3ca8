"""Stage `tune`: one method on one pipeline of a suite, for images and videos."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.errors import UserError, first_line
from effllm.stages.cost import Cost, NodeContext
from effllm.stages.history import MeasuredWork
from effllm.stages.request import JobContext, Request
from effllm.stages.stage import Parents, Stage
from effllm.stages.training import RANKS, checkpoints_b, training_request, training_state_b, training_work
from effllm.study import Study
from effllm.training.methods.low_rank import LowRankMethod
from effllm.training.suites import settings_of_run
from effllm.training.tuning_costs import TuningCosts, largest_costs
from effllm.training.tuning_settings import TuningRun

if TYPE_CHECKING:
    from effllm.runtime.artifact import Artifact
    from effllm.stages.graph import Graph

# Patches of a sample that a job is sized by: an image of 1,024 pixels has 4,096, short clips have several times that.
_PATCHES = 16_384


class TuneStage(Stage):
    """Nodes are `generator.suite.method`. An artifact is an adapter, or a transformer."""

    name: ClassVar[str] = "tune"
    module: ClassVar[str] = "effllm.training.tune"
    version: ClassVar[int] = 2
    uses_device: ClassVar[bool] = True
    kept_to: ClassVar[tuple[str, ...]] = RANKS

    def ids(self, study: Study) -> list[str]:
        return [node for id, suite in study.tuning.items() for node in suite.nodes(id)]

    def config(self, study: Study, id: str) -> TuningRun:
        model, suite, method = id.rsplit(".", 2)
        return settings_of_run(TuningRun, study.tuning[suite], study.methods[method], model, method)

    def parents(self, graph: "Graph", id: str) -> Parents:
        model, suite, _ = id.rsplit(".", 2)
        captions = graph.study.tuning[suite].captions
        return {
            "generator": graph.manifest("generator", model),
            "encodings": graph.manifest("encode", f"{model}.{captions}"),
        }

    def is_measured(self, is_in_table: bool) -> bool:
        return is_in_table

    def devices(self, config: Mapping[str, Any]) -> int:
        return int(config["parallel"]["devices"])

    def request(self, job: JobContext) -> Request:
        from effllm.results.data import EncodingsSummary
        from effllm.results.model import GeneratorSummary

        parameters = GeneratorSummary.read(job.artifact("generator").directory).parameters["transformer"]
        run = self.config(job.study, job.id)
        encodings = job.artifact("encodings")
        # A failed cell is not trained on.
        is_there = encodings.manifest.status == "ok"
        samples = EncodingsSummary.read(encodings.directory).splits["train"] if is_there else 0
        # A backward pass through all weights.
        flops = 6 * parameters * run.steps(samples) * run.samples_per_step * _PATCHES
        return training_request(run.parallel, run.dtype, parameters, flops)

    def cost(self, node: NodeContext) -> Cost:
        run = TuningRun.model_validate(dict(node.config))
        method = f"{node.config['method']['kind']} in {run.dtype}"
        costs = costs_of(node)
        if isinstance(costs, str):
            amount = f"{run.max_steps} steps of {run.samples_per_step}" if run.max_steps else f"{run.epochs} epochs"
            why = dict.fromkeys(("memory_b", "disk_b", "scratch_b"), costs)
            return Cost(run.parallel.world_size, f"{method}, {amount} of {node.id_of('encodings')}", reasons=why)
        flops = training_flops(run, costs)
        fixed = 0 if run.trains_whole_model else costs.shape.parameters()
        is_published_twice = isinstance(run.method, LowRankMethod)
        states_b, kept_b = training_state_b(costs.trained, fixed, run.parallel, run.dtype), costs.kept_b(run)
        reasons = {}
        if kept_b is None:
            reasons["memory_b"] = "what the method keeps for the backward pass was not measured"
        if not is_published_twice:
            reasons["disk_b"] = "the type of the pipeline's weights decides"
        if flops is None:
            reasons["work"] = "the number of samples decides how many steps an epoch has: set max_steps"
        return Cost(
            run.parallel.world_size,
            f"tuning by {method}",
            work=flops,
            flops=flops,
            memory_b=None if kept_b is None else states_b + kept_b,
            memory_least_b=states_b,
            # An adapter in float32, in peft's form and in that of diffusers.
            disk_b=8.0 * costs.trained if is_published_twice else None,
            scratch_b=checkpoints_b(costs.trained),
            reasons=reasons,
        )

    def measured_work(self, artifact: "Artifact") -> MeasuredWork:
        return training_work(artifact)


def costs_of(node: NodeContext) -> TuningCosts | str:
    """What a node's method takes on its transformer; the reason where nothing here tells it."""
    run = TuningRun.model_validate(dict(node.config))
    generator, encoding, captions = map(node.config_of, ("generator", "encodings", "encodings.captions"))
    if generator is None or encoding is None or captions is None:
        return "the pipeline and the shapes of samples decide"
    try:
        costs = largest_costs(run, generator, encoding, captions)
        return costs if costs.trained else "the method trains no layer of this transformer"
    except (UserError, ValueError) as error:
        return first_line(error).rstrip(".")


def training_flops(run: TuningRun, costs: TuningCosts) -> float | None:
    """Of all steps, with every sample in the largest shape; None where the samples decide how many they are."""
    if run.max_steps is None:
        return None
    passes = run.samples_per_step // run.micro_batch_size
    return float(run.max_steps * costs.step_flops(run.samples_per_step, passes))
