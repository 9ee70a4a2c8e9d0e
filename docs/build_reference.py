"""Make ``docs/reference/`` from the code: commands, recipe keys, HTTP API, Python surface.

    python docs/build_reference.py

A test compares the pages with the output of this script.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter

from workflows.cli import cli
from workflows.recipe.schema import Recipe
from workflows.recipe.sections import keys_of, section_in
from workflows.service.app import create_app

FOLDER = Path(__file__).parent / "reference"
MADE = "Made by `make docs` from the code (do not edit).\n"
SURFACE = {
    "skysift.open": (),
    "skysift.Index": ("open", "archive"),
    "skysift.Question": (
        "like",
        "where",
        "blended",
        "top",
        "above",
        "suggest",
        "detect",
        "explain",
    ),
    "skysift.Hits": (
        "to_pandas",
        "to_geodataframe",
        "to_arrow",
        "plot",
        "sheet",
        "closer_than",
        "ordinary",
    ),
    "skysift.ChangeSpec": (),
    "skysift.find_changes": (),
    "skysift.Recipe": (
        "load",
        "plan_ingest",
        "ingest",
        "plan_composites",
        "make_composites",
        "plan_index",
        "build_index",
        "update_index",
        "compact_index",
        "import_dataset",
        "make_encoder",
        "train",
        "open_archive",
        "open_index",
        "open_dataset",
    ),
    "skysift.Archive": ("create", "open", "segments", "scenes", "read", "to_dask", "to_xarray"),
    "skysift.Encoder": ("load",),
    "skysift.save_bundle": (),
    "skysift.LabelledDataset": ("open", "indices"),
    "skysift.LabelledImages": (),
    "skysift.ImageReader": ("read",),
    "skysift.build_loss": (),
    "skysift.Loss": ("ratios",),
    "skysift.PairLoss": ("terms", "prepare"),
    "skysift.Pairs": ("set_self",),
    "skysift.Ratio": (),
    "skysift.contrast": (),
    "skysift.check_gather": (),
    "skysift.LabelStatistics": ("from_labels",),
    "skysift.retrieval_metrics": (),
    "skysift.Filter": (),
    "skysift.CatalogSpec": ("of",),
    "skysift.SceneQuery": (),
    "skysift.BandMapping": (),
    "skysift.MaskMapping": (),
    "skysift.GridSpec": (),
    "skysift.TileRules": (),
    "skysift.IngestSpec": (),
    "skysift.plan_ingest": (),
    "skysift.ingest": (),
    "pipeline.importing.ImportSpec": (),
    "pipeline.importing.plan_import": (),
    "pipeline.importing.import_embeddings": (),
    "skysift.IndexSpec": (),
    "skysift.build_index": (),
    "skysift.update_index": (),
    "skysift.Searcher": ("connect", "local", "search", "search_above", "answer", "find", "explain"),
    "skysift.Query": ("rows",),
    "skysift.Location": ("of",),
    "skysift.StorageOptions": (),
}


def commands_page() -> str:
    """Return the help of every command."""
    parts = ["# Commands\n", MADE]
    for words, command in _commands(cli, ("skysift",)):
        context = click.Context(command, info_name=" ".join(words), terminal_width=88)
        context.help_option_names = ["-h", "--help"]
        parts += [f"{'#' * (len(words) + 1)} {' '.join(words)}\n"]
        parts += ["```text", command.get_help(context).rstrip(), "```\n"]
    return "\n".join(parts)


def _commands(
    command: click.Command, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(found, (*words, name))


def recipe_page() -> str:
    """Return every key of a recipe with its type, default and meaning."""
    opening = (
        "`${NAME}` and `${NAME:-default}` are replaced from the environment, secrets above all.\n"
        "`--set section.key=value` overrides any key on the command line.\n"
    )
    parts = ["# Recipe keys\n", MADE, opening]
    for name, key in keys_of(Recipe).items():
        if (section := section_in(key.annotation)) is not None:
            parts += _section(name, section)
    return "\n".join(parts)


def _section(name: str, section: type) -> list[str]:
    first = inspect.cleandoc(section.__doc__ or "").split("\n\n")[0]
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines = [f"## {name}\n", f"{first}\n", *head]
    below: list[str] = []
    for field, key in keys_of(section).items():
        inner = section_in(key.annotation)
        below += _section(f"{name}.{field}", inner) if inner else []
        kind = "secret or null" if key.is_secret else _key_type(field, key.annotation)
        default = "see below" if section_in(type(key.default)) else f"`{key.default!r}`"
        meaning = key.meaning.replace("|", "\\|")
        lines.append(f"| `{field}` | {kind} | {default} | {meaning} |")
    return [*lines, "", *below]


def _key_type(name: str, annotation: Any) -> str:
    if section_in(annotation) is annotation:
        return "section"
    text = _json_type(TypeAdapter(annotation).json_schema())
    return text.replace("integer", "size or integer") if name.endswith("_bytes") else text


def http_page() -> str:
    """Return the HTTP API from its OpenAPI description."""
    described = create_app(_Nothing(), digests=("0" * 64,)).openapi()
    parts = ["# HTTP API\n", MADE, "The whole description is served at `/openapi.json`.\n"]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts += [f"## {method.upper()} {path}\n", f"{operation.get('summary', '')}.\n"]
            if operation.get("description"):
                parts.append(f"{operation['description']}\n")
            parts += _asked(operation)
            answers = ", ".join(
                f"{code} {answer['description'].lower()}"
                for code, answer in operation["responses"].items()
            )
            parts.append(f"Answers: {answers}.\n")
    parts.append("# Bodies\n")
    for name, schema in described.get("components", {}).get("schemas", {}).items():
        parts += _schema(name, schema)
    return "\n".join(parts)


def _asked(operation: Mapping[str, Any]) -> list[str]:
    """Return the fields of an address and of a body."""
    fields = operation.get("parameters", ())
    lines = ["| field | in | type | meaning |", "|---|---|---|---|"] if fields else []
    for field in fields:
        kind, meaning = _json_type(field["schema"]), field.get("description", "")
        lines.append(f"| `{field['name']}` | {field['in']} | {kind} | {meaning} |")
    bodies = operation.get("requestBody", {}).get("content", {})
    kinds = [f"{_json_type(body['schema'])} (`{kind}`)" for kind, body in bodies.items()]
    return [
        *lines,
        *([""] if lines else []),
        *([f"Body: {' or '.join(kinds)}.\n"] if kinds else []),
    ]


class _Nothing:
    """Stands where the API would have an index: its description needs none."""


def _schema(name: str, schema: Mapping[str, Any]) -> list[str]:
    if not schema.get("properties"):
        return []
    lines = [f"## {name}\n", "| field | type | meaning |", "|---|---|---|"]
    for key, part in schema["properties"].items():
        lines.append(f"| `{key}` | {_json_type(part)} | {part.get('description', '')} |")
    return [*lines, ""]


def _json_type(part: Mapping[str, Any]) -> str:
    if "$ref" in part:
        return str(part["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(_json_type(each) for each in part["anyOf"]))
    if "enum" in part:
        return " or ".join(f"`{value}`" for value in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    if "prefixItems" in part:
        return f"{len(part['prefixItems'])} of {_json_type(part['prefixItems'][0])}"
    if part.get("type") == "array" and "items" in part:
        return f"list of {_json_type(part['items'])}"
    if part.get("type") == "object" and isinstance(part.get("additionalProperties"), dict):
        return f"mapping to {_json_type(part['additionalProperties'])}"
    return {"password": "secret", "date-time": "time"}.get(
        part.get("format", ""), str(part.get("type", "anything"))
    ) + _limits(part)


def _limits(part: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {part[key]:g}" for key, sign in signs.items() if key in part]
    return f" {', '.join(found)}" if found else ""


def python_page() -> str:
    """Return signatures and docstrings of the public names."""
    parts = [
        "# Python\n",
        MADE,
        "Notebooks and jobs use these names; everything else may change.\n",
        "The errors have the names that they have in `storage.errors`.\n",
    ]
    for path, members in SURFACE.items():
        named = _resolve(path)
        parts += [f"## {path}\n", *_entry(named, path.rsplit(".", 1)[-1])]
        for member in members:
            parts += [f"### {named.__name__}.{member}\n"]
            parts += _entry(inspect.getattr_static(named, member), member)
    return "\n".join(parts)


def _entry(named: Any, name: str) -> list[str]:
    if isinstance(named, property):
        return [f"{inspect.cleandoc(named.__doc__ or '')}\n"]
    target = getattr(named, "__func__", named)
    words = inspect.cleandoc(target.__doc__ or "")
    return ["```python", signature(target, name), "```\n", "```text", words, "```\n"]


def signature(target: Callable[..., object], name: str) -> str:
    """Return a signature as it is written, one parameter a line where it is long."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(target))).body
    if isinstance(node, ast.ClassDef):
        return _call(name, _fields(node), "")
    assert isinstance(node, ast.FunctionDef)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return _call(name, _parameters(node), returns)


def _call(name: str, parts: Sequence[str], returns: str) -> str:
    one_line = f"{name}({', '.join(parts)}){returns}"
    if len(one_line) <= 88:
        return one_line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def _fields(node: ast.ClassDef) -> list[str]:
    """Return the parameters of ``__init__``, or a dataclass's fields (keyword-only here)."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return _parameters(part)
    return [ast.unparse(part) for part in node.body if isinstance(part, ast.AnnAssign)]


def _parameters(node: ast.FunctionDef) -> list[str]:
    """Return the parameters without ``self`` or ``cls``."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
    pairs = list(zip(positional, [*defaults, *given.defaults], strict=True))
    parts = [_parameter(*pair) for pair in pairs if pair[0].arg not in ("self", "cls")]
    if given.vararg or given.kwonlyargs:
        parts.append(f"*{given.vararg.arg if given.vararg else ''}")
    parts += [_parameter(*pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*parts, f"**{given.kwarg.arg}"] if given.kwarg else parts


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")


def _resolve(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "recipe.md": recipe_page,
    "http.md": http_page,
    "python.md": python_page,
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make())
