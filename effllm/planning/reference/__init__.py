"""What a node takes by rates that ship with the package, for plans on machines without a history.

Rates of devices were measured on one H100 (docs/results/h100) and stand in the CSV files here, each with its device,
software, and commit or fingerprint of the code. They are scaled by FLOPs, bytes and the devices' peaks.
"""

from effllm.planning.reference.node import reference_of
from effllm.planning.reference.rates import Reference

__all__ = ["Reference", "reference_of"]
