"""Access to Ray and Dask: the session, task pools and the Dask scheduler.

The work itself lives in the other folders of :mod:`pipeline`.
"""
