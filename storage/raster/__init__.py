"""Pixels of scenes: GeoTIFF files, their alignment on a pixel grid, and the writer of new GeoTIFFs.

Which tiles of a scene are read lives in :mod:`pipeline.tiles`.
"""
