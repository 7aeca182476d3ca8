"""The isolated process that holds what the model wrote: it answers calls of one function, one line each.

Runs as the text of values.py, limits.py and this file together, with nothing but the standard library.
"""

import sys

LIMITS = {}  # replaced by the text of the limits before it is run


def serve():
    """Read the program, then a call a line; answer each with ["returned", value] or ["raised", name of the error]."""
    enforce(**LIMITS)  # noqa: F821
    reader, writer = private_streams()  # noqa: F821
    source, name = decode(reader.readline())  # noqa: F821
    namespace = {"__name__": "__candidate__"}
    error = None
    try:
        exec(compile(source, "<candidate>", "exec"), namespace)
        function = namespace[name]
    except BaseException as caught:
        error = type(caught).__name__
    for line in reader:
        if error is None:
            args, kwargs = decode(line)  # noqa: F821
            try:
                answer = encode(("returned", function(*args, **kwargs)))  # noqa: F821
            except BaseException as caught:
                answer = encode(("raised", type(caught).__name__))  # noqa: F821
        else:
            answer = encode(("raised", error))  # noqa: F821
        writer.write(answer + "\n")
        writer.flush()


sys.setrecursionlimit(5_000)
serve()
