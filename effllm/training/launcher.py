"""torchrun, which leaves word of the rank that a signal ended: `python -m effllm.training.launcher FILE ARGUMENT ...`.

Its exit code is the same for a rank that raised an error and for one that the kernel killed.
"""

import json
import sys
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from effllm.runtime.artifact import write_text
from effllm.runtime.start import libraries_imported


def main() -> None:
    """Run torchrun with the arguments behind the first."""
    word, *arguments = sys.argv[1:]
    libraries_imported()
    try:
        run.main(arguments)
    except ChildFailedError as error:
        ended = {rank: -failure.exitcode for rank, failure in error.failures.items() if failure.exitcode < 0}
        if ended:
            write_text(Path(word), json.dumps(ended))
        raise


if __name__ == "__main__":
    main()
