"""The shipped rate for a node, by its stage."""

from effllm.models.costs import parameter_count
from effllm.planning.reference import tuning
from effllm.planning.reference.diffusion import comparing, diffusing, encoding, sampling
from effllm.planning.reference.finetuning import finetuning
from effllm.planning.reference.inference import evaluating, profiling, quantizing
from effllm.planning.reference.pretraining import pretraining
from effllm.planning.reference.processor import samples_of
from effllm.planning.reference.rates import Reference
from effllm.planning.reference.serving import serving
from effllm.stages.cost import Cost, NodeContext, Unknown
from effllm.stages.fidelity import feature_width
from effllm.stages.latents import DOWNSCALE
from effllm.stages.tune import costs_of
from effllm.stages.weights import precision_b
from effllm.training.tuning_settings import TuningRun

_DIFFUSION = ("latents", "diffuse", "sample", "fidelity")
_TUNING = ("encode", "tune")


def reference_of(
    stage: str, node: NodeContext, cost: Cost, device: str, network_b_per_s: float | None = None
) -> Reference | None:
    """What a node of this stage takes on a device; None for a stage, or on a device, without a rate.

    network_b_per_s: of the network between hosts, as `spreading` has it. Raises `Unknown` where the amount of
    work is not known.
    """
    if stage == "pretrain":
        if cost.flops is None:
            return None
        return pretraining(node.config, parameter_count(node.shape()).total, cost.flops, device, network_b_per_s)
    if stage == "finetune":
        instructions = node.config_of("instructions")
        if instructions is None:
            return None
        return finetuning(node.config, node.shape(), samples_of(instructions), device)
    if stage == "quantize":
        return quantizing(node.config["precision"], node.shape(), device)
    if stage in _DIFFUSION:
        return _diffusion(stage, node, cost, device, network_b_per_s)
    if stage in _TUNING:
        return _tuning(stage, node, cost, device)
    precision = (node.config_of("model") or {}).get("precision")
    if precision is None:
        return None
    if stage == "serve":
        shape = node.shape()
        return serving(node.config, shape, precision["kind"], precision_b(shape, precision), device)
    if stage == "profile":
        return profiling(node, node.shape(), precision, device)
    if stage == "evaluate":
        benchmark = (node.config_of("benchmark") or {}).get("benchmark")
        if benchmark is None:
            return None
        found = evaluating(node, node.shape(), precision, benchmark, device)
        if isinstance(found, str):
            raise Unknown(found)
        return found
    return None


def _diffusion(
    stage: str, node: NodeContext, cost: Cost, device: str, network_b_per_s: float | None
) -> Reference | None:
    images = node.config_of("images")
    if stage == "latents":
        return encoding(node.config, images, device) if images else None
    if stage == "fidelity":
        sample, features = node.config_of("sample"), node.config_of("features")
        if images is None or sample is None or features is None:
            return None
        return comparing(node.config, sample, images, feature_width(features), device)
    if cost.flops is None:
        return None
    if stage == "diffuse":
        return diffusing(node.config, cost.flops, device, network_b_per_s)
    run = node.config_of("run")
    if run is None:
        return None
    # As Stable Diffusion's autoencoder has it: what another does is known once it is there.
    decoded = (run["architecture"]["image_size"] * DOWNSCALE) ** 2 if node.config_of("autoencoder") else 0
    return sampling(node.config, run, decoded, cost.flops, device)


def _tuning(stage: str, node: NodeContext, cost: Cost, device: str) -> Reference | None:
    if stage == "encode":
        generator, captions = node.config_of("generator"), node.config_of("captions")
        if generator is None or captions is None:
            return None
        return tuning.encoding(node.config, generator, captions, device)
    costs = costs_of(node)
    if isinstance(costs, str):
        raise Unknown(costs)
    if cost.flops is None:
        return None
    run = TuningRun.model_validate(dict(node.config))
    return tuning.tuning(run, node.config["method"]["kind"], costs, cost.flops, device)
