"""Models that draw images and videos from text: diffusers' pipelines of SD3 and Wan.

To add a family: a file with a subclass of `Family`, like `sd3.py`, and a line here. torch and diffusers are imported
where a family is used.
"""

from effllm.models.generators.family import Family
from effllm.models.generators.sd3 import Sd3
from effllm.models.generators.wan import Wan

FAMILIES: dict[str, Family] = {"sd3": Sd3(), "wan": Wan()}
