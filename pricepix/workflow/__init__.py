"""Whole runs: a configuration, its pipeline, the look-ahead audit and the demo."""
