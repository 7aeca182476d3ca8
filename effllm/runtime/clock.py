"""A clock that was set back is told before the work: Snakemake compares times once a job is done, and drops the result.

It refuses an output that is older than an input, whether or not the input's time would have started the job.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from effllm.errors import UserError

# Clocks of a cluster's hosts differ by seconds, and a short wait is all that it takes.
_WAIT_S = 60.0


def await_inputs(inputs: Iterable[str], scratch: Path) -> None:
    """Return once a new file is no older than any of `inputs`; `UserError` if that is more than a minute away.

    scratch: a directory on the file system of the output, whose clock it is that dates the output.
    """
    dated = {path: os.lstat(path).st_mtime for path in inputs if os.path.lexists(path)}
    if not dated:
        return
    with tempfile.NamedTemporaryFile(dir=scratch, prefix=".clock.") as probe:
        now = os.fstat(probe.fileno()).st_mtime
    newest = max(dated, key=lambda path: dated[path])
    ahead = dated[newest] - now
    if ahead <= 0:
        return
    if ahead > _WAIT_S:
        others = sum(mtime > now for mtime in dated.values()) - 1
        more = f" (and {others} more inputs are ahead of the clock)" if others else ""
        raise UserError(
            f"{newest} is dated {_text(dated[newest])}, but the clock says {_text(now)}{more}: Snakemake would refuse "
            f"the result as older than its input; set the clock right, or touch the {'files' if others else 'file'}."
        )
    print(f"{newest} is {ahead:.1f} s ahead of the clock: waiting", file=sys.stderr, flush=True)
    time.sleep(ahead)


def _text(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
