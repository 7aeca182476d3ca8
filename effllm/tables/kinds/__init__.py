"""The tables of a study by name, in the paper's order.

To add one: a file with a subclass of `Table`, like `finetuning.py`, and a line here. Nothing heavy is imported, because
every parse of the workflow reads this.
"""

from dataclasses import dataclass

from effllm.tables.kinds.diffusion import DiffusionTable
from effllm.tables.kinds.finetuning import FinetuningTable
from effllm.tables.kinds.inference import InferenceTable
from effllm.tables.kinds.kind import Table
from effllm.tables.kinds.pretraining import PretrainingTable
from effllm.tables.kinds.scores import QuantizationTable
from effllm.tables.kinds.serving import ServingTable
from effllm.tables.kinds.tuning import TuningTable
from effllm.tables.kinds.vision_language import VisionLanguageTable


@dataclass(frozen=True)
class Entry:
    """One table: its kind, its version (raised by hand when a change of code alters it), and what it is about.

    title: follows its number in headings.
    """

    kind: type[Table]
    version: int
    about: str
    title: str


TABLES: dict[str, Entry] = {
    "table3": Entry(PretrainingTable, 2, "Efficient attention.", "attention"),
    "table4": Entry(PretrainingTable, 2, "Positional encoding.", "positions"),
    "table5": Entry(PretrainingTable, 2, "Mixture of experts.", "mixtures of experts"),
    "table6": Entry(PretrainingTable, 2, "Attention-free architectures.", "attention-free models"),
    "curriculum": Entry(PretrainingTable, 1, "Order of training, in no table of the paper.", "order of training"),
    "table7": Entry(FinetuningTable, 2, "Fine-tuning on OpenO1-SFT.", "fine-tuning"),
    "table8": Entry(FinetuningTable, 2, "Fine-tuning on medical-o1-reasoning-SFT.", "fine-tuning, second data set"),
    "table9": Entry(InferenceTable, 4, "Quantization.", "quantization"),
    "table10": Entry(DiffusionTable, 1, "Attention in diffusion transformers.", "attention, images"),
    "table11": Entry(DiffusionTable, 1, "Mixture of experts in diffusion transformers.", "mixtures of experts, images"),
    "table12": Entry(VisionLanguageTable, 1, "Fine-tuning of vision-language models.", "fine-tuning, text and images"),
    "table13": Entry(TuningTable, 1, "Fine-tuning of models of images and videos.", "fine-tuning, images and videos"),
    "table16": Entry(QuantizationTable, 4, "Quantization by benchmark.", "quantization by benchmark"),
    "serving": Entry(ServingTable, 1, "Models under load, in no table of the paper.", "models under load"),
}
