"""The typed configuration of a study: what is trained, compressed, scored and measured."""

from effllm.study.graph import Graph
from effllm.study.load import load_study, parse_study
from effllm.study.study import Study

__all__ = ["Graph", "Study", "load_study", "parse_study"]
