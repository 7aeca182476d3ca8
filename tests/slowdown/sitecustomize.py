"""Imported by every Python process at its start that has this directory on its path; see tests/slowdown/__init__.py."""

import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

if {f"effllm.training.{name}" for name in ("pretrain", "finetune", "rank")} & set(sys.orig_argv):
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

elif "profiles/gh200" in sys.orig_argv:
    import snakemake_executor_plugin_slurm as plugin
    from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

    # Slurm's plugin waits longer after every look at its jobs, soon longer than these jobs run.
    RemoteExecutor.next_seconds_between_status_checks = property(lambda _: 2, lambda *_: None)
    # And five seconds before every submission, during which nothing else is submitted.
    plugin.time = SimpleNamespace(time=time.time, sleep=lambda _: None)
