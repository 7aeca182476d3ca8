"""Time and bytes of the stages that need no device: amounts that the study states, at rates of one core."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effllm.models.costs import parameter_count
from effllm.planning.reference.rates import Row, rows
from effllm.stages.cost import NodeContext, Unknown
from effllm.stages.files import expand_paths

# English text in a byte-pair encoding. Parquet holds it in about half of its bytes.
TEXT_B_PER_TOKEN = 4.5
_EMBEDDED_B = 10e6
# Of scikit-learn.
DIGITS = 1797


@dataclass(frozen=True)
class Amount:
    """Seconds and bytes published of a node of the processor. work, rate: of how much, and what was measured."""

    seconds: float
    disk_b: float | None
    work: str
    rate: str

    @property
    def source(self) -> str:
        """Work and rate."""
        return f"{self.work}; {self.rate}; downloads are not counted"


def on_processor(stage: str, node: NodeContext) -> Amount | None:
    """What a node takes; None for a stage without a rate. Raises `Unknown` where its amount is the hub's to tell."""
    row = next((row for row in rows("processor") if row["stage"] == stage), None)
    if row is None:
        return None
    units, what = _units(row, node)
    cores = int(row["cores"])
    seconds = float(row["fixed_s"]) + (units / (float(row["per_core_s"]) * cores) if row["unit"] else 0.0)
    if stage == "images":
        disk_b = units * images_b(node.config)
        return Amount(seconds, disk_b, what, row["source"])
    disk = [units * float(row["disk_b_per_unit"])] if row["disk_b_per_unit"] else []
    disk += [float(row["disk_b"])] if row["disk_b"] else []
    spread = f" on {cores} cores" if cores > 1 and units else ""
    return Amount(seconds, sum(disk) if disk else None, f"{what}{spread}", row["source"])


def _units(row: Row, node: NodeContext) -> tuple[float, str]:
    if (node.config.get("by") or {}).get("kind") == "loss":
        raise Unknown("how long a model reads a token stream is known once one was read")
    if row["unit"] == "bytes of text":
        corpus = node.config if "source" in node.config else node.config_of("corpus")
        if corpus is None:
            # A tokenizer of the hub, random tokens, or an order of what is not text.
            return 0.0, "no text"
        size_b = _text_b(corpus)
        return size_b, f"{size_b / 1e9:,.2g} GB of text"
    if row["unit"] == "bytes of weights":
        size_b = 2.0 * parameter_count(node.shape()).total
        return size_b, f"{size_b / 1e9:,.3g} GB of weights"
    if row["unit"] == "samples":
        samples = samples_of(node.config)
        return float(samples), f"{samples:,} samples"
    if row["unit"] == "images":
        images = images_of(node.config)
        return float(images), f"{images:,} images"
    return 0.0, "once"


def images_of(images: Mapping[str, Any]) -> int:
    """Images of a slice of the study, at most; raises `Unknown` where nobody has counted them."""
    source = images["source"]
    if source["kind"] == "digits":
        return DIGITS
    if source["kind"] == "noise":
        return int(source["images"])
    if source["kind"] == "files":
        return len(expand_paths("images", source["paths"]))
    for row in rows("images"):
        if (row["repo"], row["split"]) == (source["repo"], source["split"]):
            return int(row["images"])
    raise Unknown(f"how many images {source['repo']} has is not known before they are read")


def images_b(images: Mapping[str, Any]) -> float:
    """Bytes of an image as it is kept."""
    return float(images["channels"] * images["size"] ** 2)


def _text_b(corpus: Mapping[str, Any]) -> float:
    source, most = corpus["source"], corpus.get("maximum_tokens")
    if most is not None:
        return float(most * TEXT_B_PER_TOKEN)
    if source["kind"] == "embedded":
        return _EMBEDDED_B
    if source["kind"] == "files":
        return float(sum(Path(path).stat().st_size for path in expand_paths("corpora", source["paths"])))
    raise Unknown(f"how much text {source['repo']} has is the hub's to tell: set maximum_tokens")


def samples_of(instructions: Mapping[str, Any]) -> int:
    """Training samples at most, of a slice of the study; raises `Unknown` where only the hub knows."""
    source, most = instructions["source"], instructions.get("maximum_samples")
    if source["kind"] == "synthetic":
        most = source["samples"]
    if most is None:
        name = source.get("repo") or "the files"
        raise Unknown(f"how many samples {name} has is not known before they are read: set maximum_samples")
    return int(most)
