"""Plain values as JSON text, exactly: both isolated processes read this file before their own.

Numbers, texts, bytes, None, lists, tuples, dicts and sets, nested. Anything else, and whatever an instance of a
subclass adds, becomes an object that is equal to nothing: a candidate's own `__eq__` is never called.
"""

import json


def encode(value):
    """One line of JSON that `decode` turns into an equal value."""
    return json.dumps(_tagged(value), allow_nan=False, separators=(",", ":"))


def decode(line):
    """The value behind a line of `encode`; `ValueError` or `TypeError` for any other text."""
    return _plain(json.loads(line))


def _tagged(value):
    if value is None or isinstance(value, (bool, str)):
        return str.__str__(value) if isinstance(value, str) else value
    if isinstance(value, int):
        # Hexadecimal, since Python limits the digits of decimal ones.
        return ["int", int.__format__(value, "x")]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", bytes(value).hex()]
    for kind, name in ((list, "list"), (tuple, "tuple"), (set, "set"), (frozenset, "set")):
        if isinstance(value, kind):
            return [name, *(_tagged(item) for item in kind.__iter__(value))]
    if isinstance(value, dict):
        return ["dict", *([_tagged(key), _tagged(item)] for key, item in dict.items(value))]
    return ["other"]


def _plain(value):
    if not isinstance(value, list):
        if value is None or isinstance(value, (bool, str)):
            return value
        raise ValueError("not a value")
    kind, *items = value
    if kind == "int":
        return int(items[0], 16)
    if kind == "float":
        return float.fromhex(items[0])
    if kind == "complex":
        return complex(float.fromhex(items[0]), float.fromhex(items[1]))
    if kind == "bytes":
        return bytes.fromhex(items[0])
    if kind == "dict":
        return {_plain(key): _plain(item) for key, item in items}
    if kind in ("list", "tuple", "set"):
        return {"list": list, "tuple": tuple, "set": set}[kind](_plain(item) for item in items)
    if kind == "other":
        return object()
    raise ValueError("not a value")
