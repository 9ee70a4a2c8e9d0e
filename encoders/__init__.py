"""From pixels to vectors: backbones, losses, sampling, metrics and the encoder bundle.

Distributed training lives in :mod:`pipeline.training`, datasets in :mod:`storage.dataset`. No
module here imports Ray.
"""
