"""Runs, their profiles, and their units: pieces of work that are stored and found again.

`stages.py` asks a unit for its inputs, calls the core and stores what it returns.
"""
