"""What a job asks of a cluster. Imports nothing heavy: every parse of the workflow reads it."""
