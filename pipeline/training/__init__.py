"""Training by Ray Train: specification, worker, driver, records.

Losses, sampling and the training loop live in :mod:`encoders`.
"""
