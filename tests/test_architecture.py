"""The rules of the house, read from the imports themselves."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import skysift
from tests.support.paths import REPOSITORY

LAYERS = ("storage", "encoders", "pipeline", "workflows", "skysift")


def within(folder: str, names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.py" for name in names.split())


COMMANDS = (
    "archive archive_import change common composite dataset demo detect doctor drift encoder "
    "evaluate fetch index index_care index_stats ingest jobs loss migrate recipe report search "
    "serve sheet train watch"
)
HOMES = {
    "botocore": ("storage/location.py",),
    "click": (
        "workflows/cli.py",
        "workflows/exit_codes.py",
        *within("workflows/commands", COMMANDS),
    ),
    "dask": (
        "storage/archive/reader.py",
        "pipeline/runtime/dask.py",
        *within("pipeline/analysis", "drift landcover statistics"),
        *within("pipeline/composite", "driver stack"),
        "pipeline/importing/pixels.py",
    ),
    "faiss": (
        *within("storage/index", "gpu graph pilot quantizer shard"),
        "workflows/doctor/facts.py",  # on nodes, where Skysift need not be installed
    ),
    "fastapi": within(
        "workflows/service", "app deploy errors features guard negotiation probes uploads"
    ),
    "fsspec": ("storage/location.py",),
    "geopandas": ("pipeline/search/hits.py", "storage/areas.py"),
    "icechunk": (
        "storage/location.py",
        *within("storage/archive", "maintenance reader repository writer"),
    ),
    "numba": ("storage/index/kernels.py",),
    "matplotlib": ("pipeline/search/hits.py", "workflows/report/charts.py"),
    "odc": ("pipeline/composite/stack.py",),
    "pyarrow": (
        "storage/archive/export.py",
        "storage/formats.py",
        "storage/geoarrow.py",
        "storage/catalog/stac_geoparquet.py",
        "storage/embeddings/table.py",
        "storage/index/sidecar.py",
        "pipeline/analysis/landcover.py",
        *within("pipeline/search", "accuracy batch change detections distinct hits searcher"),
        "pipeline/training/driver.py",
        "workflows/notebook/pictures.py",
        "workflows/report/contact_sheet.py",
    ),
    "pydantic": (
        *within("workflows/recipe", "errors load"),
        *within("workflows/service", "deploy items marks schema uploads"),
    ),
    "pmtiles": ("workflows/report/score_map.py",),
    "pyproj": (
        "pipeline/composite/stack.py",
        "pipeline/datasets/scenes.py",
        "pipeline/importing/places.py",
        "pipeline/tiles/grid.py",
        "storage/areas.py",
        "storage/embeddings/table.py",
        "storage/geoarrow.py",
        "storage/outlines.py",
        "workflows/demo/world.py",
    ),
    "pystac": within("storage/catalog", "stac stac_write"),
    "pystac_client": ("storage/catalog/stac_api.py",),
    "rasterio": within("storage/raster", "geotiff layer writer"),
    "ray": (
        "pipeline/indexing/steps.py",
        "pipeline/ingest/on_ray.py",
        *within("pipeline/runtime", "cluster dask tasks"),
        *within("pipeline/search", "actor fleet"),
        *within("pipeline/training", "driver network resources"),
        "workflows/commands/jobs.py",
        "workflows/doctor/on_ray.py",
        "workflows/notebook/index.py",
        "workflows/service/deploy.py",
        "workflows/submit.py",
    ),
    "s3fs": (),  # fsspec finds it by the scheme
    "shapely": (
        "storage/areas.py",
        "storage/embeddings/table.py",
        "storage/formats.py",
        *within("storage", "geometry outlines"),
    ),
    "torch": (
        *within(
            "encoders",
            "augment batch_norm bundle gather gather_check loop places projection ranking text",
        ),
        *within("encoders/backbones", "build exported operators own pt2 stem timm transformers"),
        *within("encoders/losses", "__init__ bce cbml core ensemble grn icl ifnd jspcl macl msc"),
        *within("encoders/losses", "mulsupcon supcon"),
        "encoders/losses/triplet.py",
        *within("pipeline/training", "driver head log network worker"),
        "workflows/doctor/facts.py",
    ),
    "zarr": (
        *within("storage/archive", "reader repository writer"),
        "storage/embeddings/rasters.py",
    ),
}
"""The files that may import a library; each of them does."""
APART = {
    "pipeline/search/": "pipeline.",
    "storage/archive/": "storage.index",
    "storage/index/": "storage.archive",
}
"""Folders, and the modules that their files leave alone (those of the folder itself excepted)."""
PUBLIC = (
    "storage.archive",
    "encoders.losses",
    "pipeline.importing",
    "pipeline.ingest",
    "pipeline.indexing",
    "pipeline.search",
    "skysift",
)
"""Packages whose names notebooks, tests and benchmarks may import from the package itself."""
HEAVY = {
    "dask",
    "faiss",
    "icechunk",
    "pandas",
    "pyarrow",
    "pyproj",
    "rasterio",
    "ray",
    "torch",
    "transformers",
    "zarr",
}
FORBIDDEN_CALLS = ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load")


def modules() -> list[Path]:
    return [path for layer in LAYERS for path in sorted((REPOSITORY / layer).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(path: Path) -> Iterator[str]:
    """Every imported module name of a file, inside functions too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            yield node.module


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down_and_libraries_stay_home(path: Path):
    name = name_of(path)
    layer = LAYERS.index(name.split("/")[0])
    for imported in imports_of(path):
        root = imported.split(".")[0]
        if root in LAYERS:
            assert LAYERS.index(root) <= layer, f"{name} imports {imported}: imports point down"
        if root in HOMES:
            homes = HOMES[root]
            assert name in homes, f"{name} imports {imported}; its homes are {homes}"


def test_every_home_imports_its_library():
    """A home that has lost its library would let the library come back unseen."""
    for library, homes in HOMES.items():
        for home in homes:
            path = REPOSITORY / home
            assert path.is_file(), f"{home}, a home of {library}, does not exist"
            roots = {imported.split(".")[0] for imported in imports_of(path)}
            assert library in roots, f"{home} no longer imports {library}"


@pytest.mark.parametrize("folder", APART)
def test_rooms_that_are_apart_do_not_import_each_other(folder: str):
    own = folder.strip("/").replace("/", ".")
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        for imported in imports_of(path):
            if imported == own or imported.startswith(f"{own}."):
                continue
            assert not imported.startswith(APART[folder]), f"{name_of(path)} imports {imported}"


def test_a_uri_and_its_options_travel_as_one_location():
    """The recipe reads the options; every other function gets them inside a Location."""
    named = {name_of(path) for path in modules() if "StorageOptions" in path.read_text()}
    assert named - {"skysift/__init__.py"} == {"storage/location.py", "workflows/recipe/schema.py"}


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    """The names that a module's own statements define, imports left out."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            yield from _defined([*node.body, *node.orelse])


@cache
def _offered(module: str) -> frozenset[str]:
    """The names that a module defines; of a package, its folders and modules too."""
    path = REPOSITORY / module.replace(".", "/")
    if not path.is_dir():
        return frozenset(_defined(tree_of(path.with_suffix(".py")).body))
    inner = {entry.stem for entry in path.iterdir() if entry.is_dir() or entry.suffix == ".py"}
    return inner | frozenset(_defined(tree_of(path / "__init__.py").body))


def test_a_name_is_imported_from_the_module_that_defines_it():
    others = [REPOSITORY / folder for folder in ("tests", "benchmarks", "docs")]
    outside = [path for folder in others for path in sorted(folder.rglob("*.py"))]
    for path in [*modules(), *outside]:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            if node.module.split(".")[0] not in LAYERS:
                continue
            if path in outside and node.module in PUBLIC:
                continue
            for alias in node.names:
                assert alias.name in _offered(node.module), (
                    f"{name_of(path)} imports {alias.name} from {node.module}, "
                    "which does not define it"
                )


SPECS = [pytest.param(path, id=name_of(path)) for path in modules() if path.name == "spec.py"]


@pytest.mark.parametrize("path", SPECS)
def test_a_spec_brings_no_heavy_library(path: Path):
    module = name_of(path).removesuffix(".py").replace("/", ".")
    code = f"import sys, {module}; print(*({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [], f"importing {module} brings {done.stdout}"


FOLDERS = [path for path in modules() if path.name == "__init__.py"]


@pytest.mark.parametrize("path", FOLDERS, ids=name_of)
def test_a_folder_says_what_lives_there_and_what_does_not(path: Path):
    """The first line says what; a later sentence names the module where its neighbour lives."""
    text = ast.get_docstring(tree_of(path)) or ""
    _first, _, rest = text.partition("\n")
    assert ":mod:`" in rest, f"{name_of(path)} does not say where its neighbours live"


def test_the_front_door_defines_nothing():
    """`skysift` re-exports: the names of type checkers, people and imports are the same."""
    folder = REPOSITORY / "skysift"
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"__init__.py", "py.typed"}
    _words, *rest = tree_of(folder / "__init__.py").body
    assert [type(node).__name__ for node in rest] == [
        "ImportFrom",  # TYPE_CHECKING
        "ImportFrom",  # public_names
        "If",
        "Assign",  # __all__
        "Assign",  # __getattr__
        "FunctionDef",  # __dir__
    ]
    _, _, checked, names, homes, _ = rest
    typed = {alias.name: node.module for node in checked.body for alias in node.names}
    assert ast.literal_eval(names.value) == sorted(typed)
    lazy = {**ast.literal_eval(homes.value.args[1])}
    assert lazy == typed


def test_the_front_door_opens_at_once_and_leads_to_every_name():
    code = f"import sys, skysift; print(*({HEAVY!r} & set(sys.modules)))"
    quick = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert quick.stdout.split() == []
    for name in skysift.__all__:
        assert getattr(skysift, name) is not None


def test_nothing_is_ever_unpickled():
    for path in modules():
        text = path.read_text()
        for call in FORBIDDEN_CALLS:
            assert f"{call}(" not in text, f"{path.name} calls {call}"
        assert "allow_pickle=True" not in text, path.name
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path.name} loads a pickle"


def test_every_module_says_why_it_exists():
    for path in modules():
        assert ast.get_docstring(tree_of(path)), f"{path} has no docstring"


def test_tests_import_helpers_from_support_only():
    for path in sorted((REPOSITORY / "tests").rglob("*.py")):
        for imported in imports_of(path):
            if imported.split(".")[0] == "tests":
                assert imported.startswith("tests.support"), f"{path.name} imports {imported}"
