"""What the shipped presets offer by name: precisions and benchmarks, and what a study extends to have them."""

import functools
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

from effllm.errors import UserError
from effllm.fields import suggestion
from effllm.init.wishes import Wishes
from effllm.quantization import AnyPrecision, Precision
from effllm.study.inheritance import SHIPPED, read_study

EMBEDDED = "presets/embedded.yaml"
_ON_CPU = (EMBEDDED, "presets/cpu-protocol.yaml")
_ON_GPU = ("presets/precisions.yaml", "presets/gpu-protocol.yaml")
# What the preset of a GPU's studies has, and more: extended where one of the others is asked for.
_FAMILY = "presets/precision-family.yaml"


def protocol(wishes: Wishes) -> str:
    """The preset of how models are scored and profiled."""
    return (_ON_CPU if wishes.on_cpu else _ON_GPU)[1]


def presets(wishes: Wishes, benchmarks: Iterable[str] = ()) -> list[str]:
    """What a study extends that quantizes, scores and profiles: later ones go before earlier ones."""
    texts, measured = _texts(wishes), protocol(wishes)
    named = {_benchmarks()[id] for id in benchmarks} - {texts}
    # Its precisions are calibrated on its own text: those of a GPU's study go before them.
    return [*(name for name in (EMBEDDED,) if name in named), texts, *sorted(named - {EMBEDDED}), measured]


def precisions(wishes: Wishes) -> dict[str, Precision]:
    """The precisions that studies of this kind may name."""
    content = _preset(EMBEDDED if wishes.on_cpu else _FAMILY)["precisions"]
    return {id: TypeAdapter(AnyPrecision).validate_python(settings) for id, settings in content.items()}


def _texts(wishes: Wishes) -> str:
    """The preset of the precisions that are asked for, and of what they are calibrated on."""
    if wishes.on_cpu:
        return EMBEDDED
    usual = _ON_GPU[0]
    return usual if set(wishes.precisions) <= _preset(usual)["precisions"].keys() else _FAMILY


def chosen_precisions(wishes: Wishes) -> list[str]:
    """The precisions of the study; bfloat16 and int4 unless others were named. `UserError` for an unknown one."""
    known = precisions(wishes)
    for id in wishes.precisions:
        if id not in known:
            raise UserError(
                f"--precisions: {id!r:.60} is none that the presets have; {suggestion(id, known)} "
                "(docs/init.md says how to add another)."
            )
    return list(wishes.precisions or ("bfloat16", "int4"))


def chosen_benchmarks(wishes: Wishes) -> list[str]:
    """The benchmarks of the study, some quick ones unless others were named. `UserError` for an unknown one."""
    known = _benchmarks()
    for id in wishes.benchmarks:
        if id not in known:
            meant = next((ours for ours in known if id.lower() in _names_of(ours)), None)
            advice = f"it is called {meant!r} there" if meant else suggestion(id, known)
            raise UserError(
                f"--benchmarks: {id!r:.60} is none that the presets have; {advice} "
                "(docs/init.md says how to add another)."
            )
    usual = ("word-order", "next-word") if wishes.on_cpu else ("ifeval", "mmlu-pro")
    return list(wishes.benchmarks or (usual if wishes.scored else ()))


def _names_of(benchmark: str) -> list[str]:
    """What else a benchmark is called: its label, and the harness's name of its task."""
    settings = _preset(_benchmarks()[benchmark])["benchmarks"][benchmark]
    return [benchmark, settings["label"].lower(), settings.get("task", benchmark)]


def documents_of(benchmarks: Iterable[str], most: int) -> dict[str, dict[str, int]]:
    """The keys by which so many documents of each benchmark are asked, in those that have more or an unknown number."""
    limits = {}
    for id in benchmarks:
        settings = _preset(_benchmarks()[id])["benchmarks"][id]
        if settings["kind"] != "held_out":
            limits[id] = {"limit": most}
        elif most < settings["items"]:
            limits[id] = {"items": most}
    return limits


def inference_of(wishes: Wishes, preset: str | None = None) -> dict[str, Any]:
    """The settings of the measured windows, of a preset that has its own or of the protocol."""
    settings: dict[str, Any] = _preset(preset or protocol(wishes))["inference"]
    return settings


@functools.cache
def _benchmarks() -> dict[str, str]:
    """The preset of each benchmark."""
    names = sorted(str(path.relative_to(SHIPPED)) for path in (SHIPPED / "presets").glob("*.yaml"))
    return {id: name for name in names for id in _preset(name).get("benchmarks", {})}


@functools.cache
def _preset(name: str) -> dict[str, Any]:
    content: dict[str, Any] = read_study(SHIPPED / name)
    return content
