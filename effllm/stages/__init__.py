"""The stages of the workflow by name, in the order of the graph.

To add one: a file with a subclass of `Stage`, like `merge.py`, and a line here. Nothing heavy is imported, because
every parse of the workflow reads this table.
"""

from effllm.stages.autoencoder import AutoencoderStage
from effllm.stages.benchmark import BenchmarkStage
from effllm.stages.captions import CaptionsStage
from effllm.stages.corpus import CorpusStage
from effllm.stages.diffuse import DiffuseStage
from effllm.stages.encode import EncodeStage
from effllm.stages.evaluate import EvaluateStage
from effllm.stages.features import FeaturesStage
from effllm.stages.fidelity import FidelityStage
from effllm.stages.finetune import FinetuneStage
from effllm.stages.generator import GeneratorStage
from effllm.stages.images import ImagesStage
from effllm.stages.instructions import InstructionsStage
from effllm.stages.latents import LatentsStage
from effllm.stages.merge import MergeStage
from effllm.stages.model import ModelStage
from effllm.stages.order import OrderStage
from effllm.stages.overlap import OverlapStage
from effllm.stages.pretrain import PretrainStage
from effllm.stages.profile import ProfileStage
from effllm.stages.quantize import QuantizeStage
from effllm.stages.sample import SampleStage
from effllm.stages.serve import ServeStage
from effllm.stages.stage import Stage
from effllm.stages.tokenizer import TokenizerStage
from effllm.stages.tokens import TokensStage
from effllm.stages.tune import TuneStage

STAGES: dict[str, Stage] = {
    "corpus": CorpusStage(),
    "tokenizer": TokenizerStage(),
    "tokens": TokensStage(),
    "order": OrderStage(),
    "instructions": InstructionsStage(),
    "images": ImagesStage(),
    "captions": CaptionsStage(),
    "autoencoder": AutoencoderStage(),
    "latents": LatentsStage(),
    "features": FeaturesStage(),
    "pretrain": PretrainStage(),
    "diffuse": DiffuseStage(),
    "sample": SampleStage(),
    "fidelity": FidelityStage(),
    "generator": GeneratorStage(),
    "encode": EncodeStage(),
    "tune": TuneStage(),
    "model": ModelStage(),
    "finetune": FinetuneStage(),
    "merge": MergeStage(),
    "quantize": QuantizeStage(),
    "benchmark": BenchmarkStage(),
    "evaluate": EvaluateStage(),
    "overlap": OverlapStage(),
    "profile": ProfileStage(),
    "serve": ServeStage(),
}
