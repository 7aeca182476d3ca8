"""Fine-tuning methods by the `kind` that they have in a study.

| kind        | trained                                | start                   | s in W + s B A     |
|-------------|----------------------------------------|-------------------------|--------------------|
| `lora`      | A and B of each targeted layer         | B = 0                   | alpha / rank       |
| `lora_plus` | the same, B at a multiple of A's rate  | B = 0                   | alpha / rank       |
| `rslora`    | the same                               | B = 0                   | alpha / sqrt(rank) |
| `dora`      | the same, and the norms of W's rows    | B = 0                   | alpha / rank       |
| `pissa`     | the same                               | first singular parts    | alpha / rank       |
| `loha`      | B1, A1, B2, A2, multiplied elementwise | one of them 0           | alpha / rank       |
| `lokr`      | factors of a Kronecker product         | one of them 0           | alpha / rank       |
| `glora`     | A and B in W + W * A + B               | A = B = 0               |                    |
| `freeze`    | all above the first layers             | the base model          |                    |
| `full`      | everything                             | the base model          |                    |

To add one: a file with a subclass of `Method`, like `freeze.py`, of `LowRankMethod`, like `dora.py`, or of
`DenseUpdateMethod`, like `loha.py`, and a line here. Nothing here imports torch before a method is applied.
"""

from typing import Annotated

from effllm.fields import FormOf
from effllm.training.methods.dora import DoraMethod
from effllm.training.methods.freeze import FreezeMethod
from effllm.training.methods.full import FullMethod
from effllm.training.methods.glora import GloraMethod
from effllm.training.methods.loha import LoHaMethod
from effllm.training.methods.lokr import LoKrMethod
from effllm.training.methods.lora import LoraMethod
from effllm.training.methods.lora_plus import LoraPlusMethod
from effllm.training.methods.method import Method
from effllm.training.methods.pissa import PissaMethod
from effllm.training.methods.rslora import RsLoraMethod

METHODS: dict[str, type[Method]] = {
    "lora": LoraMethod,
    "lora_plus": LoraPlusMethod,
    "rslora": RsLoraMethod,
    "dora": DoraMethod,
    "pissa": PissaMethod,
    "loha": LoHaMethod,
    "lokr": LoKrMethod,
    "glora": GloraMethod,
    "freeze": FreezeMethod,
    "full": FullMethod,
}

AnyMethod = Annotated[Method, FormOf(METHODS)]
"""The type of a method in a configuration."""
