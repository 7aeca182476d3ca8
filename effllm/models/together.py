"""One model over several devices that work together: a part of every layer on each, by the plan of its architecture.

Each device has a process. This one leads: what it generates, the others generate with it, from the same arguments. They
are its children, so that what they take of the machine is its own, and they end with it.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers import AutoConfig
from transformers.distributed import DistributedConfig

from effllm.errors import CellFailure
from effllm.models.loading import load_causal_lm
from effllm.models.placement import terms
from effllm.runtime.launch import die_with_parent

if TYPE_CHECKING:
    from effllm.models.loading import CausalLM

_CPU = torch.device("cpu")
# A process that is waited for longer than this has ended.
_FOLLOWERS_END_S = 60
# What this process gets to fail by itself when another has failed, and how often it looks.
_GRACE_S, _LOOK_S = 30.0, 0.5


@contextmanager
def loaded_together(checkpoint: Path, devices: Sequence[str]) -> "Iterator[CausalLM]":
    """The model in `checkpoint` over `devices`, of which the first is this process's, for as long as the block runs.

    Of the model `generate` may be called. Raises `CellFailure` (unsupported) for an architecture that has no plan or
    whose heads the devices do not divide.
    """
    require_divisible(checkpoint, len(devices))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    followers = [
        subprocess.Popen(
            [sys.executable, "-m", "effllm.models.follower", str(checkpoint), str(rank), str(port), *devices],
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        for rank in range(1, len(devices))
    ]
    done = threading.Event()
    threading.Thread(target=end_with, args=(followers, done), daemon=True).start()
    try:
        with part_of(checkpoint, 0, port, devices) as model:
            _lead(model)
            yield model
            _announce(None)
            done.set()
        for follower in followers:
            follower.wait(_FOLLOWERS_END_S)
    finally:
        done.set()
        for follower in followers:
            follower.kill()
            follower.wait()


def end_with(followers: Sequence[subprocess.Popen[bytes]], done: threading.Event, grace_s: float = _GRACE_S) -> None:
    """End this process once one of the others has ended before all is done: it would wait for it, and cannot be told.

    What ended it is in the log. One that ran out of memory does so a moment before or after this one, which says so.
    """
    while not done.wait(_LOOK_S):
        if any(follower.poll() is not None for follower in followers) and not done.wait(grace_s):
            print("error: a process that has part of the model has ended", file=sys.stderr, flush=True)
            os._exit(1)


def require_divisible(checkpoint: Path, devices: int) -> None:
    """Raise `CellFailure` (unsupported) unless the model's architecture has a plan, and its heads divide."""
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    if not getattr(config.get_text_config(), "base_model_tp_plan", None):
        reason = f"Transformers has no plan to cut the layers of model_type {config.model_type!r}"
        raise CellFailure("unsupported", reason)
    shape = terms(checkpoint)
    for key in ("num_attention_heads", "num_key_value_heads"):
        # Transformers cuts them all the same, and fails at the first layer.
        if getattr(shape, key, devices) % devices:
            raise CellFailure("unsupported", f"{devices} devices do not divide the model's {getattr(shape, key)} {key}")


@contextmanager
def part_of(checkpoint: Path, rank: int, port: int, devices: Sequence[str]) -> "Iterator[CausalLM]":
    """This process's part of the model, for as long as the block runs; `rank` is its place among the devices."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(devices), "LOCAL_WORLD_SIZE": len(devices)}
    on_gpus = devices[rank].startswith("cuda")
    # Taken out again once it was read: Accelerate would share out work by it.
    with _environment(names | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}):
        if on_gpus:
            torch.cuda.set_device(devices[rank])
        # What is called is announced among the processors: a GPU would be asked for each announcement.
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
        try:
            model = load_causal_lm(checkpoint, distributed_config=DistributedConfig(tp_size=len(devices))).eval()
        except BaseException:
            dist.destroy_process_group()
            raise
    try:
        yield model
    finally:
        dist.destroy_process_group()


@contextmanager
def _environment(names: Mapping[str, object]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in names}
    os.environ |= {name: str(value) for name, value in names.items()}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def follow(model: "CausalLM", device: str) -> None:
    """Generate what the leading process generates, until it is done."""
    while (call := _announce()) is not None:
        model.generation_config = call["own"]
        with torch.inference_mode():
            model.generate(**{key: _moved(value, device) for key, value in call["options"].items()})


def _lead(model: "CausalLM") -> None:
    generate = model.generate

    def led(inputs: torch.Tensor, **options: Any) -> torch.Tensor:
        options = {"inputs": inputs, **options}
        # What watches the generation watches this one.
        sent = {key: _moved(value, _CPU) for key, value in options.items() if key != "stopping_criteria"}
        _announce({"options": sent, "own": model.generation_config})
        return generate(**options)

    model.generate = led  # type: ignore[method-assign]


def _announce(call: Mapping[str, Any] | None = None) -> Any:
    """What the leading process calls next, None once it is done."""
    calls = [call]
    dist.broadcast_object_list(calls, src=0, device=_CPU)
    return calls[0]


def _moved(value: Any, device: str | torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
