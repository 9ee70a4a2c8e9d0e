"""Data at rest: catalogs, rasters, the archive, search indexes, labelled datasets.

Encoders live in :mod:`encoders`, distributed work in :mod:`pipeline`. No module here imports Ray or
torch.
"""
