"""What the columns of each table mean for a decision. A new table adds its description here, and nothing else."""

from effllm.decision.description import Description
from effllm.tables.columns.benchmarks import BENCHMARKS
from effllm.tables.columns.finetuning import FINETUNING
from effllm.tables.columns.pretraining import PRETRAINING
from effllm.tables.columns.quantization import QUANTIZATION

DESCRIPTIONS: dict[str, Description] = {
    **dict.fromkeys(("table3", "table4", "table5", "table6"), PRETRAINING),
    **dict.fromkeys(("table7", "table8"), FINETUNING),
    "table9": QUANTIZATION,
    "table16": BENCHMARKS,
}
"""By the name of the table."""
