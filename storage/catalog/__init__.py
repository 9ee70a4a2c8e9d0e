"""From a catalog to scenes: STAC documents, APIs, GeoParquet and folders of GeoTIFFs.

Pixels are read by :mod:`storage.raster`.
"""
