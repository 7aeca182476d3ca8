"""One addition of each kind, as somebody who extends the package would write it: a file, and a line in `register`.

`tests/unit/test_additions.py` takes each through the study, the graph, plans, a forward step and a table.
"""
