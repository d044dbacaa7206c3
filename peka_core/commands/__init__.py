"""The `peka` command line: run, ladder, plan, fetch, score and doctor.

A command checks what the user gave, calls the other folders and prints the result.
"""
