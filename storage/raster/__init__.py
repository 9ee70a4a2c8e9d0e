"""Pixels of scenes: GeoTIFF files, their alignment on a pixel grid, and the writer of new GeoTIFFs.

Tiles are chosen in :mod:`pipeline.tiles`.
"""
