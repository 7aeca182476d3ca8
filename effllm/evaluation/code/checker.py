"""The isolated process that holds the benchmark's tests: it calls the candidate through its own stdin and stdout.

Runs as the text of values.py, limits.py and this file together, with nothing but the standard library.
"""

import sys

LIMITS = {}  # replaced by the text of the limits before it is run


class CandidateRaised(Exception):
    """The candidate ended a call by an error, whose name this carries."""


def check():
    """Run the tests; the last line written is ["passed"] or ["failed", name of the error]."""
    enforce(**LIMITS)  # noqa: F821
    reader, writer = private_streams()  # noqa: F821

    def call(*args, **kwargs):
        writer.write("call " + encode((args, kwargs)) + "\n")  # noqa: F821
        writer.flush()
        how, value = decode(reader.readline())  # noqa: F821
        if how != "returned":
            raise CandidateRaised(value)
        return value

    prompt, tests, name = decode(reader.readline())  # noqa: F821
    try:
        namespace = {"__name__": "__checker__"}
        # Tests use what the prompt defines before the function that is asked for.
        exec(compile(prompt, "<prompt>", "exec"), namespace)
        namespace[name] = call
        exec(compile(tests, "<tests>", "exec"), namespace)
        namespace["check"](call)
        verdict = ("passed",)
    except BaseException as error:
        verdict = ("failed", str(error) if isinstance(error, CandidateRaised) else type(error).__name__)
    writer.write("verdict " + encode(verdict) + "\n")  # noqa: F821
    writer.flush()


sys.setrecursionlimit(5_000)
check()
