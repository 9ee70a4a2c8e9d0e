"""Python's front door: an index opened for questions, a recipe with its stages, pictures of hits.

Questions are answered in :mod:`pipeline.search`; the stages are those of :mod:`workflows.stages`.
The package `skysift` offers these names to people.
"""
