"""Start a program of this package without collecting garbage among its imports.

    python -m effllm.runtime.start MODULE [ARGUMENT ...]

is `python -m MODULE [ARGUMENT ...]`, sooner. torch and Transformers make millions of objects that live to the end; the
collector would go through them time and again while they are imported, and once more when the process ends, which
together is nearly half of the start of a stage. The program says by `libraries_imported` when that is over.
"""

import gc
import runpy
import sys

from effllm.errors import EXIT_USER_ERROR, UserError
from effllm.runtime.faults import require_address_space


def main() -> None:
    """Run the module that the first argument names as `__main__`, the other arguments being its own."""
    try:
        require_address_space()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    del sys.argv[0]
    gc.disable()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def libraries_imported() -> None:
    """Collect from here on, but only what is made from here on."""
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    main()
