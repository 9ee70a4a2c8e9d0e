"""The programs that a person runs: command line, recipes, demo, service. Wiring only.

The work itself lives in :mod:`pipeline`.
"""
