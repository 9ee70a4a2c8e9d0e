"""How an index may store vectors; apart from FAISS, so that a specification need not import it."""

from typing import Literal, get_args

Kind = Literal["flat", "ivf_flat", "ivf_sq8", "ivf_rabitq", "ivf_opq", "ivf_pq", "ivf_pq4"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ESTIMATING: tuple[Kind, ...] = ("ivf_rabitq", "ivf_pq4")
"""Kinds whose scores are estimates that exact vectors have to correct."""
PQ_BITS: dict[Kind, int] = {"ivf_opq": 8, "ivf_pq": 8, "ivf_pq4": 4}
"""Bits of each part of a vector in the kinds with a product quantizer."""
