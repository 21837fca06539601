"""``bimba prepare BENCHMARK``: is a benchmark's data where the harness looks for it, and if not, what is to be done.

``sources.py`` says what each benchmark consists of, ``run.py`` goes through it; the others do one thing each.
"""
