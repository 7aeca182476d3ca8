"""The typed configuration of a study: what is trained, compressed, scored and measured."""

from effllm.study.load import load_study, parse_study
from effllm.study.study import Study

__all__ = ["Study", "load_study", "parse_study"]
