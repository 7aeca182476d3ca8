"""How near serving is to what memory allows: the bytes that decoding must read, and the time that it takes."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig

from effllm.models.costs import cache_bytes, weights_read
from effllm.results.quantization import Quantization
from effllm.results.serving import ServingRoofline
from effllm.runtime.artifact import Artifact
from effllm.serving.measure import Kept
from effllm.telemetry.metrics import model_bandwidth_utilization


@dataclass(frozen=True)
class Decoding:
    """What decoding reads of a model: its configuration, its weights' bytes, and the type of its cache."""

    config: Any
    weight_bytes: int
    dtype: torch.dtype

    @classmethod
    def of(cls, artifact: Artifact, dtype: str | None) -> "Decoding":
        """Of a model of stage quantize. An engine that does not say its type is taken to compute in 16 bits."""
        config = AutoConfig.from_pretrained(artifact.directory / "model", local_files_only=True)
        weights = Quantization.read(artifact.directory).weights
        return cls(config, weights.bytes, getattr(torch, dtype or "bfloat16"))

    def roofline(self, kept: Kept, tokens_per_s: float, device_name: str) -> ServingRoofline:
        """Of one load: a step takes the median time between tokens, and gives a token to as many as that makes.

        A step that reads prompts too takes longer, and its products are not counted: at long prompts decoding is
        bound by them, and not by memory.
        """
        names = ("decode_bytes_per_step", "decode_mbu")
        figures = kept.load.figures
        step_ms = figures and figures.itl.p50.value_ms
        if not step_ms:
            reason = "too few tokens came after others"
            return ServingRoofline(**dict.fromkeys(names), reasons=dict.fromkeys(names, reason))
        done = [request for request in kept.completions if request.error is None]
        # While it is answered, a request has on average half of its answer behind it.
        context = sum(request.prompt_tokens + sum(request.counts) // 2 for request in done) // len(done)
        try:
            weights_b = weights_read(self.config, self.weight_bytes, self.dtype)
            requests = tokens_per_s * step_ms / 1e3
            step_b = weights_b + requests * cache_bytes(self.config, context, self.dtype)
        except ValueError as error:
            return ServingRoofline(**dict.fromkeys(names), reasons=dict.fromkeys(names, str(error)))
        mbu = model_bandwidth_utilization(step_b, step_ms / 1e3, device_name)
        unknown = {} if mbu is not None else {"decode_mbu": f"the peak of {device_name!r} is not in the table of peaks"}
        return ServingRoofline(decode_bytes_per_step=step_b, decode_mbu=mbu, reasons=unknown)
