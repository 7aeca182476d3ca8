"""Decisions from tables: pure functions over the rows of CSV files, which know nothing of how the files were made."""
