"""How an index may store vectors; apart from FAISS, so that a specification need not import it."""

from typing import Literal, get_args

Kind = Literal["flat", "ivf_flat", "ivf_sq8", "ivf_rabitq", "ivf_opq", "ivf_pq"]
KINDS: tuple[Kind, ...] = get_args(Kind)
