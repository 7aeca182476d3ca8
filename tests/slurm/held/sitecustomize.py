"""On the path of the tests' jobs: a training run waits at a checkpoint for as long as its test wants.

Tiny models are trained faster than a test can look. A run waits, after its first checkpoint of the step that the file
`<scratch>.hold` says or of a later one, until the file says otherwise or is gone. Without that file it is left alone.
"""

import math
import sys
import time
from pathlib import Path

if {"effllm.training.pretrain", "effllm.training.ranks"} & set(sys.orig_argv):
    from effllm.training.checkpoints import MarkComplete

    mark = MarkComplete.on_save

    def held_from(scratch: Path) -> float:
        try:
            return int(Path(f"{scratch}.hold").read_text())
        except FileNotFoundError:
            return math.inf

    def mark_and_wait(self, args, state, control, **others):
        control = mark(self, args, state, control, **others)
        while state.global_step >= held_from(Path(args.output_dir).parent):
            time.sleep(0.02)
        return control

    MarkComplete.on_save = mark_and_wait
