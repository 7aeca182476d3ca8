"""Scaling laws: losses of small trainings fitted by L(N, D) = E + A/N^alpha + B/D^beta, and what follows from it.

Knows nothing of artifacts or studies: docs/scaling.md says what is fitted and how far to trust it.
"""
