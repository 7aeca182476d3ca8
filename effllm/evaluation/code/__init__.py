"""Programs that a model wrote, run apart from everything else and judged by tests that they cannot reach.

Two processes, each isolated by itself. The *candidate* holds what the model wrote and answers calls of one function;
the *checker* holds the benchmark's tests and calls it. Between them pass plain values only, so that nothing in the
candidate can end the tests early, forge their verdict or make a wrong value equal to the right one.
"""
