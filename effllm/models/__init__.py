"""Models under test: their shapes, and how weights enter the study."""
