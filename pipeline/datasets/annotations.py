"""Files of annotation programs: tasks to label, and the labels that the programs export.

Every picture is named ``tile-<number>.png``, and programs keep that name at the end of a path of
their own, so it finds the row again. Four forms are read; the content decides which:

=================  ================================================================================
Label Studio       JSON: choices of every task; a skipped task has no label, a task submitted
                   without a choice has none of the classes
Label Studio MIN   JSON-MIN: the same, an object for each annotation (its COCO lacks choices)
COCO               categories of the annotations of an image, with or without a box; an image
                   without an annotation counts as not looked at
GeoJSON            a property for each class (0 or 1, false or true); a feature without a value in
                   any counts as not looked at, else an empty value is 0
=================  ================================================================================

References
----------
Label Studio task format, https://labelstud.io/guide/task_format. COCO data format,
https://cocodataset.org/#format-data. GeoJSON, RFC 7946.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError
from storage.formats import feature_collection

CHOICES = "labels"
"""Name of the group of choices in Label Studio."""
PLACE = ("number", "image", "tile_key", "scene", "datetime")
"""Properties of a GeoJSON feature that are not classes."""
_NUMBER = re.compile(r"tile-(\d+)\.png")
_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
Votes = Iterator[tuple[int, set[str]]]


def picture_name(number: int) -> str:
    """Return the path of a picture below the folder of the files.

    Examples
    --------
    >>> picture_name(7)
    'images/tile-000007.png'
    """
    return f"images/tile-{number:06d}.png"


def label_studio_config(classes: Sequence[str]) -> str:
    """Return the labelling interface: an image, and a box to tick for each class."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classes)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="{CHOICES}" toName="image" choice="multiple">\n'
        f"{choices}\n  </Choices>\n</View>\n"
    )


def label_studio_tasks(numbers: Sequence[int], about: Sequence[Mapping[str, Any]]) -> bytes:
    """Return tasks without predictions; their images are served from the folder of the files."""
    tasks = [
        {"data": {"image": f"/data/local-files/?d={picture_name(number)}", **facts}}
        for number, facts in zip(numbers, about, strict=True)
    ]
    return _encoded(tasks)


def coco_images(numbers: Sequence[int], side_px: int, classes: Sequence[str]) -> bytes:
    """Return images and categories, without annotations."""
    images = [
        {"id": number, "file_name": picture_name(number), "width": side_px, "height": side_px}
        for number in numbers
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    return _encoded({"images": images, "annotations": [], "categories": categories})


def geojson_tiles(records: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> bytes:
    """Return tiles (with the members of `PLACE`, ``bbox``, ``geometry``) and empty classes.

    Raises
    ------
    ConfigError
        A class has the name of another property.
    """
    if taken := set(PLACE) & set(classes):
        raise ConfigError(
            f"suggest: a class is called {min(taken)!r}, as a column of the GeoJSON is; rename it"
        )
    empty = dict.fromkeys(classes)
    return _encoded(feature_collection({**record, **empty} for record in records))


def read_annotations(
    data: bytes, where: str, classes: Sequence[str]
) -> dict[int, NDArray[np.uint8]]:
    """Return the labels (K,) of each picture that was labelled, by its number.

    Parameters
    ----------
    data, where
        Content of the file, and its name in messages.
    classes
        Names of the K classes.

    Returns
    -------
    dict
        Where several people labelled a picture, it has the labels that at least half of them gave.

    Raises
    ------
    ConfigError
        The file is of no form that is read, names an unknown class, or holds no label.

    Examples
    --------
    >>> export = b'[{"image": "a/tile-000002.png", "labels": {"choices": ["sea", "ship"]}}]'
    >>> found = read_annotations(export, "min.json", ("sand", "sea", "ship"))
    >>> {number: labels.tolist() for number, labels in found.items()}
    {2: [0, 1, 1]}
    """
    position = {name: index for index, name in enumerate(classes)}
    votes: dict[int, list[NDArray[np.uint8]]] = {}
    try:
        for number, names in _votes(json.loads(data), where, classes):
            given = np.zeros(len(classes), np.uint8)
            for name in names:
                if name not in position:
                    raise ConfigError(
                        f"{where}: class {name!r} is not one of {', '.join(classes)}; rename it"
                    )
                given[position[name]] = 1
            votes.setdefault(number, []).append(given)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where} is not a file of labels ({type(error).__name__}: {error}); give Label "
            "Studio's JSON or JSON-MIN, COCO or GeoJSON"
        ) from error
    if not votes:
        raise ConfigError(f"{where}: no picture has a label; label some, and export them")
    return {
        number: np.asarray(2 * np.sum(given, axis=0, dtype=np.int64) >= len(given), np.uint8)
        for number, given in votes.items()
    }


def _votes(document: Any, where: str, classes: Sequence[str]) -> Votes:
    """Yield the number of a picture and the classes that one person gave it."""
    if isinstance(document, list):
        for task in document:
            yield from _label_studio(task, where)
    elif document.get("type") == "FeatureCollection":
        for feature in document["features"]:
            yield from _geojson(feature["properties"], where, classes)
    else:
        yield from _coco(document, where)


def _label_studio(task: Mapping[str, Any], where: str) -> Votes:
    if "annotations" not in task:  # JSON-MIN: one choice is a text, several are a list
        if task.get("annotation_id") is None and CHOICES not in task:
            return  # exported with all tasks, and not looked at
        given = task.get(CHOICES, {"choices": []})
        names = [given] if isinstance(given, str) else given["choices"]
        yield _number(task["image"], where), set(names)
        return
    for annotation in task["annotations"]:
        if not annotation.get("was_cancelled"):
            chosen = [r["value"]["choices"] for r in annotation["result"] if r["type"] == "choices"]
            yield _number(task["data"]["image"], where), {name for part in chosen for name in part}


def _coco(document: Mapping[str, Any], where: str) -> Votes:
    names = {category["id"]: category["name"] for category in document["categories"]}
    given: dict[Any, set[str]] = {}
    for annotation in document["annotations"]:
        given.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
    for image in document["images"]:
        if image["id"] in given:
            yield _number(image["file_name"], where), given[image["id"]]


def _geojson(properties: Mapping[str, Any], where: str, classes: Sequence[str]) -> Votes:
    number, present, is_labelled = _number(properties["image"], where), set(), False
    for name in classes:
        cell = properties.get(name)
        if cell is None or str(cell).strip() == "":
            continue
        flag = _FLAGS.get(str(cell).strip().lower())
        if flag is None:
            raise ConfigError(
                f"{where}: property {name} of tile {number} holds {cell!r}, expected 0 or 1"
            )
        is_labelled = True
        if flag:
            present.add(name)
    if is_labelled:
        yield number, present


def _number(path: str, where: str) -> int:
    found = _NUMBER.findall(path)
    if not found:
        raise ConfigError(
            f"{where}: image {path!r} is not one of those that were suggested, named "
            "tile-<number>.png; keep their names"
        )
    return int(found[-1])


def _encoded(document: Any) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()
