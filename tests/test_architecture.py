"""The rules of the house, read from the imports themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LAYERS = ("storage", "encoders", "pipeline", "workflows")
HOMES = {
    "s3fs": ("storage/location.py",),
    "fsspec": ("storage/location.py",),
    "botocore": ("storage/location.py",),
    "pystac": ("storage/catalog/stac.py", "storage/catalog/stac_write.py"),
    "pystac_client": ("storage/catalog/stac_api.py",),
    "rasterio": (
        "storage/raster/geotiff.py",
        "storage/raster/writer.py",
        "storage/raster/layer.py",
    ),
    "odc": ("pipeline/composite/stack.py",),
    "zarr": (
        "storage/archive/reader.py",
        "storage/archive/writer.py",
        "storage/archive/repository.py",
    ),
    "icechunk": (
        "storage/archive/reader.py",
        "storage/archive/maintenance.py",
        "storage/archive/writer.py",
        "storage/archive/repository.py",
        "storage/location.py",
    ),
    "faiss": (
        "storage/index/gpu.py",
        "storage/index/quantizer.py",
        "storage/index/shard.py",
    ),
    "geopandas": ("storage/archive/export.py",),
    "torch": (
        "encoders/",
        "pipeline/training/driver.py",
        "pipeline/training/worker.py",
        "pipeline/training/log.py",
    ),
    "ray": ("pipeline/", "workflows/"),
}
FORBIDDEN_CALLS = ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load")


def modules() -> list[Path]:
    return [path for layer in LAYERS for path in sorted((REPOSITORY / layer).rglob("*.py"))]


def imports_of(path: Path) -> Iterator[str]:
    """Every imported module name of a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            yield node.module


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_down_and_libraries_stay_home(path: Path):
    name = path.relative_to(REPOSITORY).as_posix()
    layer = LAYERS.index(name.split("/")[0])
    for imported in imports_of(path):
        root = imported.split(".")[0]
        if root in LAYERS:
            assert LAYERS.index(root) <= layer, f"{name} imports {imported}: imports point down"
        homes = HOMES.get(root)
        if homes:
            assert name.startswith(homes), f"{name} imports {imported}; its home is {homes}"


def test_nothing_is_ever_unpickled():
    for path in modules():
        text = path.read_text()
        for call in FORBIDDEN_CALLS:
            assert f"{call}(" not in text, f"{path.name} calls {call}"
        assert "allow_pickle=True" not in text, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path.name} loads a pickle"


def test_every_module_says_why_it_exists():
    for path in modules():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
