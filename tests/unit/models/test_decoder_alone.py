"""The decoder is usable without the study, and the study reads its keys without torch."""

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return set(output.split())


def test_the_decoder_imports_no_study() -> None:
    imported = modules_after("from effllm.models.decoder import EffConfig, EffForCausalLM")
    assert "effllm.models.decoder.model" in imported
    assert not {name for name in imported if name.startswith("effllm.study")}


def test_the_study_imports_no_library_of_models() -> None:
    imported = modules_after("import effllm.study")
    assert {"effllm.models.decoder.architecture", "effllm.training.methods.low_rank"} <= imported
    assert not imported & {"torch", "transformers", "peft", "gptqmodel"}
