"""Questions about scikit-learn's handwritten digits, which nobody answers without the picture."""

from collections.abc import Iterator
from io import BytesIO

from PIL import Image

from effllm.data.images.reading import Digits
from effllm.data.instructions.pictures import Row
from effllm.data.instructions.settings import Columns, DigitInstructionSource, PromptResponseColumns

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_QUESTIONS = {
    "which": ("Which digit is this?", lambda digit: _NAMES[digit]),
    "parity": ("Is this digit even or odd?", lambda digit: ("even", "odd")[digit % 2]),
}


class DigitRows:
    """A row for each picture, in the package's order."""

    columns: Columns = PromptResponseColumns(kind="prompt_response", image="image")

    def __init__(self, config: DigitInstructionSource):
        self.label = f"questions about scikit-learn's digits ({config.questions})"
        self._question, self._answer = _QUESTIONS[config.questions]

    def rows(self) -> Iterator[Row]:
        for _, digit, picture in Digits().pictures():
            assert isinstance(picture, Image.Image)
            file = BytesIO()
            # What compression makes of it differs between versions of zlib.
            picture.save(file, "PNG", compress_level=0)
            yield Row({"prompt": self._question, "response": self._answer(digit)}, file.getvalue())
