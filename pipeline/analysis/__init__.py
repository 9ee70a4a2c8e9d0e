"""Statistics of scenes and archives: bands, drift, land-cover labels, retrieval scores.

Reports that show them live in :mod:`workflows.report`, metrics of rankings in
:mod:`encoders.metrics`.
"""
