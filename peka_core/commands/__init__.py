"""The `peka` command line: run, ladder, fetch, score, doctor and grids of runs.

A command checks what the user gave, calls the other folders and prints the result.
"""
