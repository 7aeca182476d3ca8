"""Evaluation: benchmarks as artifacts, and their scores by lm-evaluation-harness with what they cost.

`benchmark` makes a self-contained benchmark of held-out text or of a task of the harness; `evaluate` runs one
model on one benchmark, offline.
"""
