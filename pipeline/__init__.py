"""The distributed stages: light specs, kernels without Ray, and one driver each.

Data at rest lives in :mod:`storage`, networks in :mod:`encoders`, commands in :mod:`workflows`.
"""
