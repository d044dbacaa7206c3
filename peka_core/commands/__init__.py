"""The `peka` command line: run, ladder, plan, fetch, score and doctor.

Commands check what they are given, call the wings below and print what came out.
"""
