"""How full a server is, from the metrics that it publishes in Prometheus' text format."""

import contextlib

from effllm.serving.engine import EngineUsage

# By server: vLLM (the second name of its cache is that of early releases), SGLang.
_CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs")
_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
_PREEMPTIONS = ("vllm:num_preemptions_total", "sglang:num_retracted_reqs_total")


def usage_of(text: str) -> EngineUsage:
    """What metrics say; None is what they do not hold. Engines of one server are added, their caches averaged."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        if line.startswith(("vllm:", "sglang:")):
            name = line.partition("{")[0].partition(" ")[0]
            value = line.rpartition("}")[2].split() if "}" in line else line.split()[1:]
            with contextlib.suppress(ValueError, IndexError):
                number = float(value[0])
                found.setdefault(name, []).append(number)

    def values(names: tuple[str, ...]) -> list[float] | None:
        return next((found[name] for name in names if name in found), None)

    def total(names: tuple[str, ...]) -> int | None:
        numbers = values(names)
        return None if numbers is None else round(sum(numbers))

    cache = values(_CACHE)
    return EngineUsage(
        cache_fraction=None if cache is None else sum(cache) / len(cache),
        running=total(_RUNNING),
        waiting=total(_WAITING),
        preemptions=total(_PREEMPTIONS),
    )
