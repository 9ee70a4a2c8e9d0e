"""Pages about an archive: the HTML report, charts, tile images, contact sheets.

The figures they show are computed in :mod:`pipeline.analysis`.
"""
