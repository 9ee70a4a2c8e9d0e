"""The graph and the weights of a network from a file of ``torch.export.save``, without unpickling.

``torch.export.load`` runs code that a file brings: it unpickles the example inputs, constants and
some weights, and evaluates the expressions of sizes. So the file is read here as what it is: an
uncompressed zip archive of a JSON document (the graph), the raw bytes of the weights, and pickles.
The pickles are never opened: that of the example inputs is left alone, a weight or constant that is
one is refused. The expressions of sizes are not evaluated: a network is run on real tiles, whose
size is known.

The names in the document are those of ``torch._export.serde.schema`` (version 8); the result is in
the form of :mod:`encoders.backbones.exported`, which does not change with torch.

References
----------
https://docs.pytorch.org/docs/stable/export/pt2_archive.html
"""

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storage.errors import ConfigError, NotFoundError

_SCHEMA = 8
_LARGEST_BATCH = 256  # tiles that an encoder embeds at once
_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    9: "complex32",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
}
_MEMORY_FORMATS = {1: "contiguous_format", 2: "channels_last", 4: "preserve_format"}
_STRIDED = 7
_EXPORT = (
    "write it with torch.export.save(torch.export.export(network.eval(), (tiles,), "
    'dynamic_shapes=({0: torch.export.Dim("batch")},)), "network.pt2")'
)
# Checks of sizes and types, which make no value. The network is tried on tiles instead.
_CHECKS = (
    "torch.ops.aten._assert_scalar.default",
    "torch.ops.aten._assert_tensor_metadata.default",
    "torch.ops.aten._assert_async.msg",
    "torch.ops.aten.sym_constrain_range.default",
    "torch.ops.aten.sym_constrain_range_for_size.default",
)

Json = dict[str, Any]


def read_network(path: Path) -> tuple[Json, dict[str, Tensor]]:
    """Read a network.

    Parameters
    ----------
    path
        File that ``torch.export.save`` of torch 2.8 or newer wrote.

    Returns
    -------
    dict, dict
        The graph as described in :mod:`encoders.backbones.exported`, without its format; and the
        weights by their names in the graph.

    Raises
    ------
    NotFoundError
        There is no such file.
    ConfigError
        The file is damaged, of another kind, holds pickled weights, or a network that is not a
        function from a batch of tiles of any number to one row of numbers a tile.
    """
    if not path.is_file():
        raise NotFoundError(f"network {path}: there is no such file; {_EXPORT}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _Program(archive).network()
    except ConfigError:
        raise
    except (
        *(EOFError, MemoryError, NotImplementedError, OSError, RecursionError, RuntimeError),
        *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"it is damaged, or no file of torch.export ({type(error).__name__}: {reason}); "
            f"{_EXPORT}"
        ) from error


class _Program:
    """The parts of an open archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = {name.partition("/")[2]: name for name in archive.namelist()}
        # The example inputs are a zip archive too, which a cut file seems to be.
        if self._read("archive_format") != b"pt2":
            raise ConfigError(f"it is damaged, or no file of torch.export; {_EXPORT}")
        models = sorted(name for name in self._names if re.fullmatch(r"models/[^/]+\.json", name))
        if len(models) != 1:
            raise ConfigError(
                f"it holds {len(models)} graphs (models/*.json) instead of one, as torch 2.8 and "
                f"newer write them; {_EXPORT}"
            )
        self._model = Path(models[0]).stem
        if (order := self._read("byteorder").decode().strip()) != "little":
            raise ConfigError(f"its numbers are {order}-endian; export it on another machine")
        document = json.loads(self._read(models[0]))
        version = document["schema_version"]["major"]
        if version != _SCHEMA:
            raise ConfigError(
                f"torch {document.get('torch_version')} wrote it in version {version} of its "
                f"format; this Skysift reads version {_SCHEMA}: export it by torch "
                f"{torch.__version__}"
            )
        self._ranges = document["range_constraints"]
        self._graph = document["graph_module"]["graph"]
        self._signature = document["graph_module"]["signature"]

    def network(self) -> tuple[Json, dict[str, Tensor]]:
        """Return the graph and the weights."""
        source, constants, weights = self._inputs()
        output = self._output()
        nodes = _needed(_nodes(self._graph["nodes"], constants), output["name"])
        used = set(_uses(nodes)) | {output["name"]}
        weights = {name: value for name, value in weights.items() if name in used}
        kinds = {
            name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
            for name, value in weights.items()
        }
        graph = {
            "input": source,
            "weights": kinds,
            "nodes": nodes,
            "output": output["name"],
            "features": output["features"],
        }
        return graph, weights

    def _inputs(self) -> tuple[Json, Json, dict[str, Tensor]]:
        """Return the description of the tiles, the constant arguments, and the weights."""
        tensors: dict[str, Tensor] = {}
        constants: Json = {}
        tiles = []
        stored = self._payloads("weights", "weight")
        fixed = self._payloads("constants", "tensor")
        for spec in self._signature["input_specs"]:
            [(kind, value)] = spec.items()
            if kind == "user_input":
                [(form, argument)] = value["arg"].items()
                if form == "as_tensor":
                    tiles.append(argument["name"])
                elif form not in ("as_none", "as_bool", "as_int", "as_float", "as_string"):
                    raise ConfigError(f"forward takes an argument of the kind {form}; {_EXPORT}")
            elif kind == "constant_input":
                constants[value["name"]] = _value(value["value"])
            elif kind in ("parameter", "buffer", "tensor_constant"):
                key = value.get("parameter_name", value.get("buffer_name"))
                key = value["tensor_constant_name"] if key is None else key
                tensors[value["arg"]["name"]] = (stored if key in stored else fixed)[key]
            else:
                raise ConfigError(f"it holds an object of another kind ({kind}), which is not read")
        if len(tiles) != 1:
            raise ConfigError(f"forward takes {len(tiles)} tensors instead of one; {_EXPORT}")
        return self._tiles(tiles[0]), constants, tensors

    def _tiles(self, name: str) -> Json:
        """Return the description of the network's input."""
        meta = self._graph["tensor_values"][name]
        sizes = [_size(size) for size in meta["sizes"]]
        dtype = _DTYPES[meta["dtype"]]
        if len(sizes) != 4 or dtype not in ("float16", "bfloat16", "float32", "float64"):
            raise ConfigError(
                f"forward takes {dtype} of {len(sizes)} dimensions, expected float32 of four: "
                f"tiles, bands, height and width; {_EXPORT}"
            )
        batch, bands, height, width = sizes
        if batch is not None:
            raise ConfigError(
                f"it takes batches of exactly {batch} tiles, and an encoder gets batches of any "
                f'size: give dynamic_shapes=({{0: torch.export.Dim("batch")}},); {_EXPORT}'
            )
        self._require_any_batch(meta["sizes"][0])
        if height != width:
            raise ConfigError(f"it takes tiles of {height} x {width} px; tiles are square")
        return {"name": name, "dtype": dtype, "bands": bands, "side_px": height}

    def _require_any_batch(self, size: Json) -> None:
        text = size["as_expr"]["expr_str"]
        symbol = re.fullmatch(r"Symbol\('(\w+)'.*\)", text)
        limits = self._ranges.get(symbol[1] if symbol else "", {})
        most = limits.get("max_val")
        if symbol is None or (most is not None and most < _LARGEST_BATCH):
            limit = f"at most {most} tiles" if symbol else f"{text[:60]} tiles"
            raise ConfigError(
                f"it takes batches of {limit}, and an encoder gets batches of 1 to "
                f'{_LARGEST_BATCH}: give torch.export.Dim("batch") without limits'
            )

    def _output(self) -> Json:
        """Return the name of the result, and its number of features."""
        specs = self._signature["output_specs"]
        written = sorted({kind for spec in specs for kind in spec} - {"user_output"})
        if written:
            raise ConfigError(
                f"it changes its own weights or statistics ({', '.join(written)}); call .eval() "
                "before torch.export.export"
            )
        results = [spec["user_output"]["arg"] for spec in specs]
        if len(results) != 1 or "as_tensor" not in results[0]:
            raise ConfigError(
                f"forward returns {len(results)} results instead of one tensor; {_EXPORT}"
            )
        name = results[0]["as_tensor"]["name"]
        meta = self._graph["tensor_values"][name]
        sizes, dtype = [_size(size) for size in meta["sizes"]], _DTYPES[meta["dtype"]]
        if len(sizes) != 2 or sizes[0] is not None or sizes[1] is None or "float" not in dtype:
            shape = ", ".join("n" if size is None else str(size) for size in sizes)
            raise ConfigError(
                f"forward returns {dtype} of shape ({shape}), expected floats of shape (n, "
                "features) for n tiles; end forward with a mean over the pixels, or leave the "
                "classifier out"
            )
        return {"name": name, "features": sizes[1]}

    def _payloads(self, folder: str, prefix: str) -> dict[str, Tensor]:
        """Return the tensors of a folder by their names in the network; none is a pickle."""
        if f"data/{folder}/{self._model}.pt" in self._names:
            raise _pickled(f"data/{folder}/{self._model}.pt")
        config = json.loads(self._read(f"data/{folder}/{self._model}_{folder}_config.json"))[
            "config"
        ]
        found = {}
        for name, payload in config.items():
            file = payload["path_name"]
            if payload["use_pickle"] or not re.fullmatch(rf"{prefix}_\d+", file):
                raise _pickled(f"data/{folder}/{file}")
            found[name] = _tensor(self._read(f"data/{folder}/{file}"), payload["tensor_meta"], name)
        return found

    def _read(self, name: str) -> bytes:
        if name not in self._names:
            raise ConfigError(f"it is damaged, or no file of torch.export (no {name}); {_EXPORT}")
        member = self._archive.getinfo(self._names[name])
        if member.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing
            raise ConfigError(f"{name} in it is compressed; {_EXPORT}")
        return self._archive.read(member)


def _pickled(name: str) -> ConfigError:
    return ConfigError(
        f"{name} in it is a pickle, which may run code and is never opened; give the network plain "
        "tensors as weights, no tensor subclasses (quantised weights) and no objects"
    )


def _tensor(data: bytes, meta: Json, name: str) -> Tensor:
    """Return a contiguous tensor of raw bytes."""
    sizes = [_size(size) for size in meta["sizes"]]
    strides = [_size(size) for size in meta["strides"]]
    offset = _size(meta["storage_offset"])
    if meta["layout"] != _STRIDED or None in (*sizes, *strides, offset):
        raise ConfigError(f"weight {name} is no plain tensor")
    dtype = getattr(torch, _DTYPES[meta["dtype"]])
    if not data:
        if math.prod(sizes):  # type: ignore[arg-type]
            raise ConfigError(f"weight {name} has no numbers; save the network with its weights")
        return torch.zeros(sizes, dtype=dtype)  # type: ignore[arg-type]
    flat = torch.frombuffer(bytearray(data), dtype=dtype)
    return flat.as_strided(sizes, strides, offset).clone(memory_format=torch.contiguous_format)  # type: ignore[arg-type]


def _size(size: Json) -> int | None:
    """Return a size; None where it is not fixed."""
    value = size.get("as_int")
    return value if value is None else int(value)


def _nodes(nodes: list[Json], constants: Mapping[str, Any]) -> Iterator[Json]:
    """Yield the steps of a graph."""
    for node in nodes:
        if node["target"] in _CHECKS:
            continue
        name = str(node["target"]).removeprefix("torch.ops.")
        args: list[Any] = []
        kwargs: Json = {}
        for argument in node["inputs"]:
            value = _with(_value(argument["arg"]), constants)
            if argument.get("kind") == 2:
                kwargs[argument["name"]] = value
            else:
                args.append(value)
        outputs = [_value(output) for output in node["outputs"]]
        out = [_names_of(output) for output in outputs]
        yield {
            "op": re.sub("^_operator", "operator", name),
            "args": args,
            "kwargs": kwargs,
            "out": out[0] if len(out) == 1 else out,
        }


def _needed(nodes: Iterator[Json], output: str) -> list[Json]:
    """Return the steps that the output depends on, those that write into their input included."""
    needed, kept = {output}, []
    for node in reversed(list(nodes)):
        writes = node["op"].rpartition(".")[0].endswith("_")
        if writes or needed & set(result_names(node["out"])):
            needed |= set(_uses([node]))
            kept.append(node)
    return kept[::-1]


def _with(value: Any, constants: Mapping[str, Any]) -> Any:
    """Put the constant arguments of forward in place of their names."""
    if isinstance(value, list):
        return [_with(part, constants) for part in value]
    if isinstance(value, dict) and value.get("of") in constants:
        return constants[value["of"]]
    return value


def _uses(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from _uses(part)
    elif isinstance(value, dict):
        if "of" in value:
            yield value["of"]
        for part in value.values():
            yield from _uses(part)


def result_names(out: Any) -> Iterator[str]:
    """Yield the names in the ``out`` of a step."""
    if isinstance(out, list):
        for part in out:
            yield from result_names(part)
    elif out is not None:
        yield str(out)


def _names_of(value: Any) -> Any:
    return [_names_of(part) for part in value] if isinstance(value, list) else value and value["of"]


def _of(value: Json) -> Json:
    return {"of": value["name"]}


def _number(value: Json) -> Any:
    """Return a size, or another number, that may be a result."""
    [(kind, content)] = value.items()
    return {"of": content} if kind == "as_name" else content


def _float(value: float | str) -> Any:
    if math.isfinite(float(value)):
        return float(value)
    return {"float": str(float(value))}


def _optional(value: Json) -> Any:
    return None if "as_none" in value else _of(value["as_tensor"])


def _layout(value: int) -> None:
    if value != _STRIDED:
        raise ConfigError("the network uses sparse tensors, which are not supported")


def _same(value: Any) -> Any:
    return value


_KINDS: Mapping[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_tensor": _of,
    "as_tensors": lambda values: [_of(value) for value in values],
    "as_optional_tensor": _optional,
    "as_optional_tensors": lambda values: [_optional(value) for value in values],
    "as_int": _same,
    "as_ints": _same,
    "as_int_lists": _same,
    "as_bool": _same,
    "as_bools": _same,
    "as_string": _same,
    "as_strings": _same,
    "as_float": _float,
    "as_floats": lambda values: [_float(value) for value in values],
    "as_sym_int": _number,
    "as_sym_ints": lambda values: [_number(value) for value in values],
    "as_sym_float": _number,
    "as_sym_floats": lambda values: [_number(value) for value in values],
    "as_sym_bool": _number,
    "as_sym_bools": lambda values: [_number(value) for value in values],
    "as_scalar_type": lambda value: {"dtype": _DTYPES[value]},
    "as_memory_format": lambda value: {"memory_format": _MEMORY_FORMATS[value]},
    "as_layout": _layout,
    "as_device": lambda _: {"device": "input"},
}


def _value(argument: Json) -> Any:
    """Return an argument in the form of `encoders.backbones.exported`."""
    [(kind, value)] = argument.items()
    if kind not in _KINDS:
        raise ConfigError(
            f"the network uses an argument of the kind {kind}, which is not supported; leave "
            "branches (torch.cond), loops and objects out of forward"
        )
    return _KINDS[kind](value)
