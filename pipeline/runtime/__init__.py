"""How work reaches Ray and Dask: the session, task pools and the Dask scheduler.

What the work is lives in the other folders of :mod:`pipeline`.
"""
