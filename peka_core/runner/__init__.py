"""Runs: profiles, and units of work that are stored under `runs/` and found again.

A thin layer of stages asks a unit for its inputs, calls the core and stores what it returns.
"""
