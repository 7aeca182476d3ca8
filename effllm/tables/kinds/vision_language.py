"""Tables of fine-tuning with images: what those of fine-tuning have, and whether the models look at the images."""

from typing import TYPE_CHECKING, Any, ClassVar

from effllm.tables.columns.vision_language import VISION_LANGUAGE
from effllm.tables.description import Description
from effllm.tables.kinds.finetuning import FinetuningTable
from effllm.tables.kinds.kind import Inputs, Spec

if TYPE_CHECKING:
    from effllm.study.study import Study


class VisionLanguageTable(FinetuningTable):
    """A table with a row per vision-language model and method of a suite."""

    columns: ClassVar[Description] = VISION_LANGUAGE

    def check(self, study: "Study", where: str) -> None:
        super().check(study, where)
        instructions = study.finetuning[self.suite].instructions
        if not study.instructions[instructions].has_images:
            raise ValueError(
                f"{where}.suite: {self.suite!r} trains on {instructions!r}, which has no images; name a suite that does"
            )

    @staticmethod
    def assemble(spec: Spec, inputs: Inputs) -> list[dict[str, Any]]:
        from effllm.tables.finetuning import finetuning_table

        return finetuning_table(spec, inputs, has_images=True)
