"""Searches over HTTP: a FastAPI application on Ray Serve, and the map in the browser.

The searches themselves live in :mod:`pipeline.search`.
"""
