"""A stage, as files that are put into a copy of the package by `tests/unit/test_added_stage.py`."""
