"""What the workflow asks of a cluster: its queue, and what a job needs. Imports nothing heavy: every parse reads it."""
