"""What the decoder's exchangeable parts have in common: keys of their own, and checks of them.

A part is described by an object in the registry of its kind: `attention/`, `positions/` and `feed_forward/`. The
description is read by the study, the cost formulas and plans, none of which imports torch; so it imports its layer
inside the function that builds it.
"""

from typing import Any, ClassVar

from effllm.fields import Section


class Component:
    """Base of `Attention`, `Position` and `FeedForward`.

    keys: the part's own keys with their defaults. They are keys of the architecture in a study, attributes of
        `EffConfig` and entries of config.json, so a name must not be another part's.
    keys_in_every_spec: whether specs of decoders that do not use the part hold its keys too. Specs of the first parts
        do, and must stay as they are; a new part's keys must not change the specs of everybody else's runs.

    `shape` has the keys of `DecoderArchitecture` as attributes: `EffConfig`, or a namespace.
    """

    keys: ClassVar[type[Section]] = Section
    keys_in_every_spec: ClassVar[bool] = False

    def fill_in(self, shape: Any) -> None:
        """Set the part's own keys that are None to their defaults; called whether the part is used or not."""

    def check(self, shape: Any) -> None:
        """Raise ValueError, with the key and the remedy, for a shape that the part cannot have."""
