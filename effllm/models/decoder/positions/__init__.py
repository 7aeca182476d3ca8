"""Position encodings by the name that `position` has in a study and in config.json.

To add one: a file with a subclass of `Position`, like `relative.py`, and a line here. Nothing here imports torch.
"""

from effllm.models.decoder.positions.encoding import Position
from effllm.models.decoder.positions.learned import Learned
from effllm.models.decoder.positions.relative import Relative
from effllm.models.decoder.positions.rope import Rotary
from effllm.models.decoder.positions.sinusoidal import Sinusoidal

POSITIONS: dict[str, Position] = {
    "rope": Rotary(),
    "sinusoidal": Sinusoidal(),
    "learned": Learned(),
    "relative": Relative(),
    "none": Position(),
}
