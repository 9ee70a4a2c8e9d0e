"""Cloud-free composites of many acquisitions, computed by Dask on the tile grid.

Composites are written as scenes, and :mod:`storage.catalog` reads them like any other scene.
"""
