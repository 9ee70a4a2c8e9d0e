"""Networks from normalised pixels to features.

Heads live in :mod:`encoders.projection`, losses in :mod:`encoders.losses`.
"""
