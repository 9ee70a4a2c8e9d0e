"""Scenes from the web by a list of names, addresses, sizes and SHA-256 checksums.

A list is one JSON document; ``workflows/scenes`` has those that come with Skysift. A file appears
under its name when its checksum is right, and not before; the part of a file that a stopped run
has is kept beside it, and the next run goes on there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import requests

from storage.errors import ConfigError, NotFoundError, SkysiftError
from storage.location import sha256_of_file
from storage.locks import exclusive_lock
from storage.progress import Progress, ProgressSink, ignore
from storage.values import check_types

_PIECE_BYTES = 1 << 20
_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file on the web: its name in the folder, its address, size and SHA-256 (hexadecimal)."""

    name: str
    url: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneList:
    """Files to fetch, their subject, and their licence."""

    title: str
    licence: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchReport:
    """Names of the files that were fetched, and of those that were there before."""

    fetched: tuple[str, ...]
    there_before: tuple[str, ...]


def packaged_lists() -> list[str]:
    """Return the names of the lists that come with Skysift."""
    folder = resources.files("workflows") / "scenes"
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir())


def read_scene_list(name: str) -> SceneList:
    """Read a list: one that comes with Skysift by its name, another by the path of its .json file.

    Raises
    ------
    NotFoundError
        There is no such list.
    ConfigError
        The file is no list.
    """
    packaged = name in packaged_lists()
    if not packaged and not (name.endswith(".json") and Path(name).is_file()):
        raise NotFoundError(
            f"there are no scenes {name!r}; give {', '.join(packaged_lists())} or a .json file"
        )
    file = resources.files("workflows") / "scenes" / f"{name}.json" if packaged else Path(name)
    try:
        return _of_document(json.loads(file.read_bytes()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{name} is no list of scenes: {error}") from error


def _of_document(document: Mapping[str, Any]) -> SceneList:
    files = tuple(RemoteFile(**file) for file in document["files"])
    scenes = SceneList(title=document["title"], licence=document["licence"], files=files)
    check_types(scenes)
    for file in files:
        check_types(file)
        if not file.name or Path(file.name).name != file.name or file.name.startswith("."):
            raise ValueError(f"{file.name!r} is no name of a file in the folder")
        if not file.url.startswith(("https://", "http://")):
            raise ValueError(f"{file.url!r} is no web address")
        if len(file.sha256) != 64 or file.bytes < 1:
            raise ValueError(f"{file.name} has no size or no SHA-256 of 64 digits")
    return scenes


def fetch(scenes: SceneList, folder: Path, progress: ProgressSink = ignore) -> FetchReport:
    """Fetch the files that a folder lacks.

    Raises
    ------
    SkysiftError
        An address cannot be reached or answers with an error, or its content is not that of the
        list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fetched, before = [], []
    with exclusive_lock(str(folder), "fetch", beside="fetch"), requests.Session() as session:
        for done, file in enumerate(scenes.files, 1):
            target = folder / file.name
            if target.is_file() and sha256_of_file(target) == file.sha256:
                before.append(file.name)
            else:
                _fetch_file(session, file, target)
                fetched.append(file.name)
            progress(Progress(stage="fetch", done=done, total=len(scenes.files), unit="files"))
    return FetchReport(fetched=tuple(fetched), there_before=tuple(before))


def _fetch_file(session: requests.Session, file: RemoteFile, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    if not part.is_file() or part.stat().st_size < file.bytes:
        try:
            _download(session, file, part)
        except requests.RequestException as error:
            reason = f"could not be reached ({type(error).__name__})"
            if error.response is not None:
                reason = f"answered {error.response.status_code}"
            raise SkysiftError(
                f"{file.url} {reason}; the same command continues where there is internet, or copy "
                f"the file to {target}"
            ) from error
    found, size = sha256_of_file(part), part.stat().st_size
    if (found, size) != (file.sha256, file.bytes):
        part.unlink()
        raise SkysiftError(
            f"{file.url} is another file than that of the list: SHA-256 {found[:16]} of the first "
            f"{size:,} bytes, expected {file.sha256[:16]} of {file.bytes:,}; nothing was kept of it"
        )
    part.replace(target)


def _download(session: requests.Session, file: RemoteFile, part: Path) -> None:
    """Write the rest of a file behind its first part; no more than it should have."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(file.url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            have = 0  # the server sends all of it
        with part.open("ab" if have else "wb") as stream:
            for piece in answer.iter_content(_PIECE_BYTES):
                stream.write(piece[: file.bytes + 1 - have])
                have += len(piece)
                if have > file.bytes:
                    return
