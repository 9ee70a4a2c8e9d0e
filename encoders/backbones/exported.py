"""A network of one's own as a backbone: its graph in plain values, run operator by operator.

``torch.export`` turns a network into a graph of operators; :mod:`encoders.backbones.pt2` reads such
a graph from a file without unpickling. Here the graph is checked against the allowed operators
(:mod:`encoders.backbones.operators`) and run. No code is made from the graph.

The graph is part of the encoder's description, so that a bundle stays two files::

    {"format": "skysift-graph/1",
     "input": {"name": "x", "dtype": "float32", "bands": 4, "side_px": 64},
     "weights": {"p_stem_weight": {"dtype": "float32", "shape": [16, 4, 3, 3]}, ...},
     "nodes": [{"op": "aten.conv2d.default", "args": [{"of": "x"}, {"of": "p_stem_weight"}],
                "kwargs": {}, "out": "conv2d"}, ...],
     "output": "linear", "features": 128}

``bands`` and ``side_px`` are null where the network takes any. Values are null, truth values,
numbers, text, lists of values, ``{"of": name}`` (a result, an input or a weight),
``{"dtype": name}``, ``{"float": "-inf"}``, ``{"memory_format": name}`` and ``{"device": "input"}``
(that of the tiles). ``out`` names the result; a list names the parts of several results.

Shape legend: B batch, C bands, H and W pixels, F features.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoders.backbones.operators import operator_named, refuse_forbidden, written_arguments
from encoders.backbones.pt2 import read_network, result_names
from encoders.backbones.stem import Backbone, resized
from storage.errors import ConfigError, SkysiftError

FORMAT = "skysift-graph/1"
_WEIGHT = re.compile(r"[pbc]_\w+")
_DEVICE = "device of the input"  # no name of a result
_FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_TOLERANCE = 1e-3
_MEMORY_FORMATS = ("contiguous_format", "channels_last", "preserve_format")


@dataclass(frozen=True, slots=True)
class _Of:
    """A value that an earlier step makes."""

    name: str


@dataclass(frozen=True, slots=True)
class _Step:
    """One call; ``spent`` are the results that no later step needs."""

    name: str
    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    out: Any
    spent: tuple[str, ...]


class Exported(Backbone):
    """A network of one's own, from its graph; the weights are zero until they are loaded.

    The gradient flows through the graph, so that the weights can be trained further. Batch norm
    keeps its statistics and dropout does nothing, in training too.

    Parameters
    ----------
    graph
        The graph, in plain values.
    input_px
        Side to resize tiles to (bilinear); None for the side that the graph states, or for the
        size of the tiles where the graph takes any.

    Raises
    ------
    ConfigError
        The graph is malformed, uses a forbidden operator, or takes another side.
    """

    memory_format = torch.contiguous_format  # the strides with which the network was exported

    def __init__(self, graph: Mapping[str, Any], input_px: int | None = None) -> None:
        super().__init__()
        try:
            if graph["format"] != FORMAT:
                raise ConfigError(f"the graph is not of format {FORMAT}; export the network again")
            source = graph["input"]
            self._input, self._dtype = str(source["name"]), _dtype(source["dtype"])
            self.bands, self.side_px = source["bands"], source["side_px"]
            self.dimension, self._output = int(graph["features"]), str(graph["output"])
            self._weights = self._register(graph["weights"])
            self._steps = self._planned(graph["nodes"])
        except _FAULTS as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"the graph of the network is malformed ({type(error).__name__}: {error}); export "
                "the network again"
            ) from error
        if None not in (input_px, self.side_px) and input_px != self.side_px:
            raise ConfigError(
                f"input_px is {input_px}, but the network was exported for tiles of "
                f"{self.side_px} px; leave input_px, or export the network for any size"
            )
        self.input_px = input_px or self.side_px
        self.options = {"graph": graph, "input_px": input_px}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features_BF, float32, of normalised tiles."""
        x_BCHW = resized(x_BCHW, self.input_px)
        values: dict[str, Any] = {name: getattr(self, name) for name in self._weights}
        values[self._input] = x_BCHW.to(self._dtype).contiguous()
        values[_DEVICE] = x_BCHW.device
        for step in self._steps:
            try:
                result = step.function(*_filled(step.args, values), **_filled(step.kwargs, values))
                values.update(_named(step.out, result))
            except _FAULTS as error:
                raise RuntimeError(f"{step.name}: {error}") from error
            for name in step.spent:
                del values[name]
        y_BF: Tensor = values[self._output]
        if tuple(y_BF.shape) != (len(x_BCHW), self.dimension):
            raise ConfigError(
                f"backbone exported: {len(x_BCHW)} tiles gave features of shape "
                f"{tuple(y_BF.shape)}, expected ({len(x_BCHW)}, {self.dimension}); let forward "
                "return one row of features a tile, and export the network again"
            )
        return y_BF.float()

    def _register(self, weights: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
        for name, kind in weights.items():
            if not _WEIGHT.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a weight")
            value = torch.zeros(tuple(kind["shape"]), dtype=_dtype(kind["dtype"]))
            if name.startswith("p_") and value.is_floating_point():
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        return tuple(weights)

    def _planned(self, nodes: Sequence[Mapping[str, Any]]) -> tuple[_Step, ...]:
        refuse_forbidden(node["op"] for node in nodes)
        known = {self._input, *self._weights}
        last: dict[str, int] = {}
        parsed = []
        for position, node in enumerate(nodes):
            args, kwargs = _parsed(node["args"]), {k: _parsed(v) for k, v in node["kwargs"].items()}
            for name in _references([args, kwargs]):
                if name not in known and name != _DEVICE:
                    raise ValueError(f"{node['op']} needs {name!r}, which no earlier step makes")
                last[name] = position
            function = operator_named(node["op"])
            for value in written_arguments(function, args, kwargs):
                if isinstance(value, _Of) and value.name in self._weights:
                    raise ConfigError(
                        f"the network writes into its own weights or statistics ({node['op']} into "
                        f"{value.name}); call .eval() before torch.export.export"
                    )
            made = list(result_names(node["out"]))
            known.update(made)
            last.update(dict.fromkeys(made, position))
            parsed.append((node["op"], function, args, kwargs, node["out"]))
        if self._output not in known:
            raise ValueError(f"no step makes the output {self._output!r}")
        kept = {self._output, _DEVICE, *self._weights}
        spent: dict[int, list[str]] = {}
        for name, position in last.items():
            if name not in kept:
                spent.setdefault(position, []).append(name)
        return tuple(_Step(*part, tuple(spent.get(n, ()))) for n, part in enumerate(parsed))


def build_exported(
    bands: Sequence[str],
    pretrained: str | None,
    *,
    graph: Mapping[str, Any] | None = None,
    input_px: int | None = None,
) -> Exported:
    """Build a network of one's own; see `encoders.backbones.build.build_backbone`.

    Parameters
    ----------
    bands
        Band names in channel order.
    pretrained
        File of `torch.export.save`; None for a graph whose weights are loaded later.
    graph, input_px
        As for `Exported`.

    Raises
    ------
    ConfigError
        There is neither a file nor a graph, the file is refused, the network takes another number
        of bands, or its features depend on chance or on the other tiles of a batch.
    NotFoundError
        There is no such file.
    """
    if pretrained is None:
        if graph is None:
            raise ConfigError(
                "backbone exported: give the file that torch.export.save wrote as `pretrained`"
            )
        network = Exported(graph, input_px)
        _require_bands(network, bands)
        return network
    path = Path(pretrained).expanduser()
    try:
        graph, weights = read_network(path)
        network = Exported({"format": FORMAT, **graph}, input_px)
        network.load_state_dict(weights)
        _require_bands(network, bands)
        _require_inference(network, len(bands))
    except ConfigError as error:
        raise ConfigError(f"network {path}: {error}") from error
    except SkysiftError:
        raise
    except (MemoryError, RuntimeError, *_FAULTS) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"network {path}: it does not run ({reason}); export it again") from error
    return network


def _require_bands(network: Exported, bands: Sequence[str]) -> None:
    if network.bands not in (None, len(bands)):
        raise ConfigError(
            f"it takes {network.bands} bands, the encoder has {len(bands)} ({', '.join(bands)}); "
            "give the bands that it was trained on, in their order"
        )


def _require_inference(network: Exported, bands: int) -> None:
    """Refuse features that depend on chance, on earlier calls or on the other tiles of a batch."""
    side = network.input_px or 64
    x_BCHW = torch.randn(3, bands, side, side, generator=torch.Generator().manual_seed(0))
    before = [value.clone() for value in network.state_dict().values()]
    with torch.no_grad():
        y_BF, again_BF = network(x_BCHW), network(x_BCHW)
        alone_BF = torch.cat([network(x_BCHW[row : row + 1]) for row in range(3)])
    if not all(map(torch.equal, before, network.state_dict().values())):
        raise ConfigError(
            "it changes its own weights or statistics; call .eval() before torch.export.export"
        )
    allowed = _TOLERANCE * float(y_BF.abs().max())
    if not (y_BF - again_BF).abs().max() <= allowed:
        raise ConfigError(
            "it gives the same tiles other features each time, or no numbers; call .eval() before "
            "torch.export.export"
        )
    if not (y_BF - alone_BF).abs().max() <= allowed:
        raise ConfigError(
            "the features of a tile depend on the other tiles of its batch; call .eval() before "
            "torch.export.export, and take no mean over the batch in forward"
        )


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no type of numbers")
    return found


def _parsed(value: Any) -> Any:
    """Return an argument as Python value; results of other steps as `_Of`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_parsed(part) for part in value]
    [(kind, content)] = value.items()
    if kind == "of":
        return _Of(str(content))
    if kind == "device" and content == "input":
        return _Of(_DEVICE)
    if kind == "dtype":
        return _dtype(content)
    if kind == "memory_format" and content in _MEMORY_FORMATS:
        return getattr(torch, content)
    if kind == "float":
        return float(content)
    raise ValueError(f"{value!r} is no value")


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """Return an argument with the results of other steps."""
    if isinstance(value, _Of):
        return values[value.name]
    if isinstance(value, list):
        return [_filled(part, values) for part in value]
    if isinstance(value, dict):
        return {name: _filled(part, values) for name, part in value.items()}
    return value


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, _Of):
        yield value.name
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _references(part)


def _named(out: Any, result: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names of a result, or of its parts, with their values."""
    if isinstance(out, list):
        for part, value in zip(out, result, strict=True):
            yield from _named(part, value)
    elif out is not None:
        yield out, result
