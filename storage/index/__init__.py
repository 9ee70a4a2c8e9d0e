"""A search index at rest: FAISS shards, their columns, filters, ranking, the manifest.

How an index is built lives in :mod:`pipeline.indexing`; archives live in :mod:`storage.archive`.
"""
