"""The registries' lines, and a command that runs with them: `python -m tests.additions.register MODULE ARGUMENT...`.

Lines are added before anything reads the registries, as they would be if they were written there.
"""

import runpy
import sys

from effllm.models.decoder.attention import ATTENTION
from effllm.quantization import PRECISIONS
from effllm.tables.kinds import TABLES, Entry
from effllm.telemetry.sources import OPENERS
from effllm.training.methods import METHODS
from tests.additions.bitfit import BitFitMethod
from tests.additions.corpora import CorporaTable
from tests.additions.gated_attention import GatedQuery
from tests.additions.rounding import RoundedPrecision

if __name__ == "__main__":
    ATTENTION["gated"] = GatedQuery(shared=2, is_fixed=False)
    METHODS["bitfit"] = BitFitMethod
    PRECISIONS["rounded"] = RoundedPrecision
    TABLES["table90"] = Entry(CorporaTable, 1, "Corpora.", "corpora")
    OPENERS["uptime"] = ("tests.additions.uptime", "UptimeSource")
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
