"""Labelled datasets: importers of published sets, and datasets cut from scenes.

A dataset at rest lives in :mod:`storage.dataset`.
"""
