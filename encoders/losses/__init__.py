"""Training losses, built by name, with one call signature.

A name is one of this package's, the path of a class of one's own (``my_losses:Mine``) or an entry
point of the group ``skysift.losses``; see :mod:`encoders.plugins`.

``build_loss("macl", LabelStatistics.from_labels(y_NC))`` returns a module that is called as
``loss(z_BD, y_BC)`` on one batch or ``loss(z_BD, y_BC, keys=(z_GD, y_GC), offset=b)`` with the keys
of a gathered batch; see :class:`encoders.losses.core.Loss`. Some losses have parameters (``msc``,
``bce``): pass ``loss.parameters()`` to the optimiser and store the ``state_dict``.

Gathering keys across workers lives in :mod:`encoders.gather`, sampling in :mod:`encoders.sampling`.
"""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from encoders.losses.bce import Bce
from encoders.losses.cbml import Cbml
from encoders.losses.core import Loss
from encoders.losses.ensemble import EnsembleLoss
from encoders.losses.grn import Grn
from encoders.losses.icl import Icl
from encoders.losses.ifnd import Ifnd
from encoders.losses.jaccard import Jaccard
from encoders.losses.jspcl import Jspcl
from encoders.losses.macl import Macl
from encoders.losses.msc import Msc
from encoders.losses.mulsupcon import MulSupCon
from encoders.losses.probmcl import ProbMcl
from encoders.losses.simdis import SimDis
from encoders.losses.slcl import Slcl
from encoders.losses.statistics import LabelStatistics
from encoders.losses.supcon import SupCon
from encoders.losses.triplet import Triplet
from encoders.plugins import find_plugin, unknown_name
from encoders.spec import dimension_of_each
from storage.errors import ConfigError

__all__ = ["LabelStatistics", "build_loss", "loss_names", "loss_options"]

_REGISTRY: Mapping[str, tuple[type[Loss], Mapping[str, Any]]] = MappingProxyType(
    {
        "macl": (Macl, {}),
        "supcon-any": (SupCon, {"positives": "any"}),
        "supcon-all": (SupCon, {"positives": "all"}),
        "simdis": (SimDis, {}),
        "mulsupcon": (MulSupCon, {}),
        "jaccard": (Jaccard, {}),
        "jspcl": (Jspcl, {}),
        "slcl": (Slcl, {}),
        "icl": (Icl, {}),
        "msc": (Msc, {}),
        "probmcl": (ProbMcl, {}),
        "ifnd": (Ifnd, {}),
        "cbml": (Cbml, {}),
        "grn": (Grn, {}),
        "triplet": (Triplet, {}),
        "bce": (Bce, {}),
    }
)


def loss_names() -> tuple[str, ...]:
    """Return the names of Skysift's own losses, the default loss first."""
    return tuple(_REGISTRY)


def loss_options(name: str) -> dict[str, Any]:
    """Return the options of a loss and their defaults.

    Raises
    ------
    ConfigError, NotFoundError
        No loss has the name, or a loss of one's own cannot be imported.

    Examples
    --------
    >>> loss_options("supcon-any")
    {'temperature': 0.1, 'chunk_pairs': 4194304}
    """
    kind, fixed = _find(name)
    return {
        option: default
        for option, default in _keywords(kind).items()
        if option not in fixed and option != "dimension"
    }


def build_loss(
    name: str,
    statistics: LabelStatistics,
    *,
    dimension: int | None = None,
    heads: int = 1,
    initial_seed: int = 0,
    **options: Any,
) -> Loss:
    """Build a loss by name; its parameters have the same initial values in every process.

    Parameters
    ----------
    name
        One of :func:`loss_names`, ``package.module:Name`` of a subclass of
        :class:`encoders.losses.core.Loss`, or the name of an entry point of ``skysift.losses``.
    statistics
        Label counts of the training set.
    dimension
        D, the width of the embeddings; required by losses with parameters (``macl`` only with
        ``prototypes``), ignored by the others.
    heads
        Heads of the embeddings; each has a loss of its own.
    initial_seed
        Seed of the initial values of those parameters; a training gives its own seed.
    options
        Options of the loss, as listed by :func:`loss_options`.

    Raises
    ------
    ConfigError
        The name or an option is unknown, a value is out of range, ``dimension`` is missing, or a
        loss of one's own cannot be imported.
    NotFoundError
        There is no module of that name.
    """
    if heads > 1:
        width = dimension if dimension is None else dimension_of_each(dimension, heads)
        seeds = range(initial_seed, initial_seed + heads)
        return EnsembleLoss(
            [
                build_loss(name, statistics, dimension=width, initial_seed=s, **options)
                for s in seeds
            ]
        )
    kind, fixed = _find(name)
    known = loss_options(name)
    for option in options:
        if option not in known:
            raise ConfigError(
                f"loss {name}: no option {option!r}; it has {', '.join(known) or 'none'}"
            )
    keywords = _keywords(kind)
    if "dimension" in keywords:
        if dimension is None and keywords["dimension"] is inspect.Parameter.empty:
            raise ConfigError(f"loss {name}: has parameters of its own; pass dimension=D")
        options["dimension"] = dimension
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(initial_seed)
        return kind(statistics, **fixed, **options)


def _find(name: str) -> tuple[type[Loss], Mapping[str, Any]]:
    if name in _REGISTRY:
        return _REGISTRY[name]
    if (plugin := find_plugin("losses", name)) is not None:
        return plugin.load(Loss), {}
    raise unknown_name("losses", name, _REGISTRY)


def _keywords(kind: type[Loss]) -> dict[str, Any]:
    """Return the keyword arguments of a loss and their defaults.

    A class that passes further ones on (``**options``) has those of its base too.
    """
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        found |= {name: own[name] for name in own if name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found
