"""``bimba report``: the runs of a sweep as one page, Markdown, plots, CSV and JSON.

``collect`` finds the runs, ``cell`` and ``answers`` read one, ``configs`` and ``label`` say what differs between them,
``statistics`` what that proves, ``summary`` puts groups, scores and comparisons together, ``tables``, ``plots`` and
``page`` show them, ``files`` writes all.
"""
