"""How a stage is run and its artifact kept: life cycle, leases, digests, publishing, provenance, Slurm's queue."""
