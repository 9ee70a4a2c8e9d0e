"""Networks of a user's own as files of torch.export, right ones, wrong ones and hostile ones."""

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

BANDS = ("red", "green", "blue", "nir")
SIDE_PX = 32
ANY_BATCH = ({0: torch.export.Dim("batch")},)


class Network(nn.Module):
    """Convolution, batch norm, attention and a pooling: what networks are made of."""

    def __init__(self, bands: int = len(BANDS), features: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(bands, 16, 4, 4), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.mixer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.register_buffer("scale", torch.full((1,), 3.0), persistent=False)
        self.head = nn.Linear(32, features)
        self.stem[1].running_mean.uniform_(-1, 1)
        self.stem[1].running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.mixer(self.stem(x).flatten(2).transpose(1, 2))
        first, second = tokens.chunk(2, dim=1)
        peak, _ = second.max(dim=1)
        return self.head(torch.cat([first.mean(1), peak], dim=1) * self.scale)


def network(seed: int = 0, **options: Any) -> Network:
    """A trained network, as far as a test can tell."""
    torch.manual_seed(seed)
    return Network(**options).eval()


def exported(
    path: Path,
    module: nn.Module | None = None,
    *,
    bands: int = len(BANDS),
    side_px: int = SIDE_PX,
    dynamic: Any = ANY_BATCH,
    change: Callable[[torch.export.ExportedProgram], Any] = lambda program: program,
) -> Path:
    """Write a network as its owner does."""
    module = network(bands=bands) if module is None else module
    with torch.no_grad():
        tiles = torch.zeros(2, bands, side_px, side_px)
        program = torch.export.export(module, (tiles,), dynamic_shapes=dynamic)
        torch.export.save(change(program), path)
    return path


def rewritten(
    source: Path, target: Path, change: Callable[[dict[str, bytes]], Mapping[str, bytes]]
) -> Path:
    """Write an archive again with other members; names are those below the archive's folder."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].partition("/")[0]
        members = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in {**members, **change(members)}.items():
            archive.writestr(f"{root}/{name}", data)
    return target


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self):
        return Path.touch, (self._marker,)


def hostile(source: Path, folder: Path, kind: str, marker: Path) -> Path:
    """Write a network whose file runs code when torch loads it."""
    payload = pickle.dumps(Bomb(marker))

    def change(members: dict[str, bytes]) -> Mapping[str, bytes]:
        model = json.loads(members["models/model.json"])
        weights = json.loads(members["data/weights/model_weights_config.json"])
        constants = json.loads(members["data/constants/model_constants_config.json"])
        if kind == "weight":
            first = next(iter(weights["config"].values()))
            first["use_pickle"] = True
            return {
                "data/weights/model_weights_config.json": json.dumps(weights).encode(),
                f"data/weights/{first['path_name']}": payload,
            }
        if kind == "legacy weights":
            return {"data/weights/model.pt": payload}
        if kind == "constant":
            constants["config"]["scale"] |= {"use_pickle": True}
            return {
                "data/constants/model_constants_config.json": json.dumps(constants).encode(),
                "data/constants/tensor_0": payload,
            }
        if kind == "object":
            constants["config"]["scale"] |= {"use_pickle": True, "path_name": "opaque_obj_0"}
            return {
                "data/constants/model_constants_config.json": json.dumps(constants).encode(),
                "data/constants/opaque_obj_0": payload,
            }
        if kind == "example inputs":
            return {"data/sample_inputs/model.pt": payload}
        assert kind == "size"
        code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
        text = re.sub(r"Symbol\('s\d+'[^)]*\)", lambda _: "CODE", json.dumps(model))
        return {"models/model.json": text.replace("CODE", code.replace('"', '\\"')).encode()}

    return rewritten(source, folder / "hostile.pt2", change)


def with_operator(source: Path, target: Path, name: str) -> Path:
    """Write a network in which the activation is another operator."""

    def change(members: dict[str, bytes]) -> Mapping[str, bytes]:
        text = members["models/model.json"].decode()
        assert "torch.ops.aten.relu_.default" in text
        changed = text.replace("torch.ops.aten.relu_.default", name)
        return {"models/model.json": changed.encode()}

    return rewritten(source, target, change)
