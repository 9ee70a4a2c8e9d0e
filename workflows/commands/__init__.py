"""The verbs of the command line, one module a group; each wires settings to one library call.

The entry point is :mod:`workflows.cli`, settings are read by :mod:`workflows.recipe`.
"""
