"""Faults, one kind a module: see scripts/faults.py."""
