"""Published embeddings at rest: tables of chips and rasters of pixels, read as rows of numbers.

The archive that they become is :mod:`storage.archive`; tiles and commits are
:mod:`pipeline.importing`.
"""
