"""What becomes of the pictures of a source: which are left out and why, which come twice, and which are held out."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from effllm.data.sampling import SPLIT_SALT
from effllm.errors import UserError

# Names of files that were left out, to look at.
_NAMED = 20


class Sifting:
    """Counts of a source's pictures; each is decided on by its pixels, wherever it stands.

    dropped: by reason, those that were left out. unusable: names of the first of them, with the reason.
    """

    def __init__(self, reasons: Sequence[str], held_out_fraction: float):
        self.dropped: Counter[str] = Counter(dict.fromkeys((*reasons, "duplicate"), 0))
        self.unusable: list[str] = []
        self.seen = 0
        self._held_out_below = held_out_fraction * 2**64
        self._digests: set[bytes] = set()

    def drop(self, name: str, reason: str) -> None:
        """Leave a picture out."""
        self.dropped[reason] += 1
        if len(self.unusable) < _NAMED:
            self.unusable.append(f"{name}: {reason}")

    def split_of(self, pixels: np.ndarray) -> str | None:
        """`train` or `held_out`; None, and counted, for pixels that have come before."""
        digest = xxhash.xxh3_128_digest(pixels.tobytes(), SPLIT_SALT)
        if digest in self._digests:
            self.dropped["duplicate"] += 1
            return None
        self._digests.add(digest)
        return "held_out" if int.from_bytes(digest[:8], "big") < self._held_out_below else "train"

    def require(self, counts: Mapping[str, int], what: str, source: str, remedy: str) -> None:
        """`UserError` if a split ends up empty; `what` is one of what was sifted, `source` where it came from."""
        for split, count in counts.items():
            if not count:
                reasons = ", ".join(f"{n} {reason}" for reason, n in self.dropped.items() if n) or "none dropped"
                first = f"; the first is {self.unusable[0]}" if self.unusable else ""
                raise UserError(
                    f"no {what} is left for {split} of the {self.seen} of {source} ({reasons}{first}): {remedy}."
                )
