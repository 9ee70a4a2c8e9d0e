"""Cutting scenes into tiles: the grid, the rules and the reading of tiles. No Ray.

Decoding and aligning rasters lives in :mod:`storage.raster`.
"""
