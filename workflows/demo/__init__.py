"""A complete run of Skysift on a synthetic world; it needs no data.

The stages that it runs live in :mod:`pipeline`, the drawing of pages in :mod:`workflows.report`.
"""
