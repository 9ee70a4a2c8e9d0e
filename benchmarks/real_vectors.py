"""Frozen-backbone vectors of flipped and cropped views of real images, kept in a file.

Views of an image are alike, and images of a scene class are alike: the vectors have the structure
of an archive in which places lie close together, which no mixture draws.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from encoders.backbones.build import build_backbone
from pipeline.datasets.folder import import_folder
from storage.dataset import LabelledDataset

Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

VIEWS = 20
"""Views of an image; they follow each other in the file."""
_VIEW_PX, _LEAST_SHARE, _BATCH = 64, 0.6, 512
_WHOLE_BATCH = 32
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def view_features(sources: Sequence[Path], backbone: Path, scratch: Path) -> Float32:
    """Return the features (images * VIEWS, F) of views of labelled sets; computed once.

    Parameters
    ----------
    sources
        Folders or tars of images, as `skysift dataset import` takes them.
    backbone
        Folder of the pretrained MobileNetV2.
    scratch
        Keeps the imported sets and the features.
    """
    names = ",".join(map(str, (*sources, backbone, VIEWS, _VIEW_PX)))
    path = scratch / f"views-{hashlib.sha256(names.encode()).hexdigest()[:12]}.npy"
    if not path.exists():
        network = build_backbone("mobilenet_v2", ["red", "green", "blue"], str(backbone)).eval()
        found = []
        for number, source in enumerate(sources):
            uri = str(scratch / f"images-{number}")
            import_folder(str(source), uri)
            images = LabelledDataset.open(uri).images
            found += [_views(images[i : i + 32], network, i) for i in range(0, len(images), 32)]
        part = path.with_suffix(".part.npy")
        np.save(part, np.concatenate(found))
        part.replace(path)
    return np.asarray(np.load(path), dtype=np.float32)


def image_features(source: Path, backbone: Path, scratch: Path) -> tuple[Float32, Labels]:
    """Return the features (n, F) of the whole images of a labelled set and its labels (n, C).

    Parameters
    ----------
    source
        A folder or tar of images, as `skysift dataset import` takes them.
    backbone
        Folder of the pretrained MobileNetV2.
    scratch
        Keeps the imported set and the features, which are computed once.
    """
    uri, path = str(scratch / "images"), scratch / "features.npy"
    import_folder(str(source), uri)
    dataset = LabelledDataset.open(uri)
    if not path.exists():
        network = build_backbone("mobilenet_v2", ["red", "green", "blue"], str(backbone)).eval()
        mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
        found = []
        with torch.inference_mode():
            for first in range(0, len(dataset.images), _WHOLE_BATCH):
                images = torch.from_numpy(np.array(dataset.images[first : first + _WHOLE_BATCH]))
                found.append(network((images.float() / 255 - mean) / std).numpy())
        part = path.with_suffix(".part.npy")
        np.save(part, np.concatenate(found))
        part.replace(path)
    return np.asarray(np.load(path), dtype=np.float32), np.asarray(dataset.labels)


def _views(images: npt.NDArray[np.generic], network: torch.nn.Module, seed: int) -> Float32:
    """Return the features (n * VIEWS, F) of random square crops, flipped or not."""
    rng = np.random.default_rng(seed)
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    views = []
    for image in torch.from_numpy(np.array(images)).float():
        for _ in range(VIEWS):
            side = int(image.shape[-1] * rng.uniform(_LEAST_SHARE, 1))
            top, left = rng.integers(image.shape[-1] - side + 1, size=2)
            view = image[:, top : top + side, left : left + side][None]
            view = F.interpolate(view, (_VIEW_PX, _VIEW_PX), mode="bilinear", antialias=True)[0]
            flips = [axis for axis in (1, 2) if rng.random() < 0.5]
            views.append((view.flip(flips) / 255 - mean) / std)
    with torch.inference_mode():
        features = [
            network(torch.stack(views[i : i + _BATCH])) for i in range(0, len(views), _BATCH)
        ]
    return torch.cat(features).numpy()


def reduced(features: Float32, dimension: int, *, centred: bool = True) -> Float32:
    """Return unit vectors (n, D): the leading principal components of features (n, F).

    Without ``centred`` the features are projected as they are.
    """
    deviations = features - features.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(deviations[::8].T))
    kept = deviations if centred else features
    vectors = kept @ axes[:, ::-1][:, :dimension].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors, dtype=np.float32)
