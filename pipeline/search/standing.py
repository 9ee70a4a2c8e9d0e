"""Standing queries: saved searches that report each new hit once.

A search's state is one file. It holds the scenes that were searched, by the fingerprint of their
pixels, and the events that wait for their receivers. A poll takes three steps, and each ends with
one atomic write of that file:

1. The new scenes are searched; they are known, and their events wait.
2. The events are appended to the file of events; they are filed.
3. The first event is sent to the webhook; it waits no longer. So with each.

A process that ends between two steps goes on with the events that wait, which are not computed
again. An event whose id the file of events holds is not appended again: each is in it once, also
after the state came back from a copy. A webhook gets an event again, with the same id, when the
process ends between its acknowledgement and the write, the acknowledgement was lost, or the state
came back from a copy that is older than the event.

Of two processes with one state, such as a watch that sleeps while another machine takes over, the
slower one meets a state that it did not read: it writes nothing and tells nothing more.

A scene is new when it was not searched before or its pixels differ, so that a rollback, a second
ingest or a rebuilt index repeats nothing.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.search.saved import SavedSearch
from pipeline.search.searcher import Searcher
from storage.archive.ledger import Ledger
from storage.errors import ConfigError, CorruptIndexError, NotFoundError, SkysiftError
from storage.formats import hit_records
from storage.location import Location
from storage.locks import exchange
from storage.values import json_digest
from storage.webhook import Webhook

_KIND, _VERSION = "standing query", 1
_ID = re.compile(rb'"id": "(\w+)"')
Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """The state of a search: see the module."""

    title: str
    known: Mapping[str, str] = field(default_factory=dict)
    waiting: tuple[Event, ...] = ()
    file_bytes: int = 0
    filed: bool = False


class StandingQuery:
    """A saved search, its state, and the receivers of its events.

    Parameters
    ----------
    search
        With a least score: without one every scene would have hits.
    folder
        Of the states, one file for each search.
    file
        Receives events, one JSON object a line; None for none.
    webhook
        Receives events; None for none.

    Raises
    ------
    ConfigError
        The search has no least score.
    """

    def __init__(
        self,
        search: SavedSearch,
        folder: Location,
        file: Path | None = None,
        webhook: Webhook | None = None,
    ) -> None:
        if search.min_score is None:
            raise ConfigError(
                f"saved search {search.title!r} has no least score, so every scene would have "
                "hits; save it with `skysift search --min-score S --save FILE`"
            )
        self.search, self._file, self._webhook = search, file, webhook
        # Another vector, filter or score is another search; the title is for people.
        self.id = json_digest({**asdict(search), "title": ""})[:16]
        self._folder, self._name = folder, f"{self.id}.json"
        self._seen = b""

    def begin(self, ledger: Callable[[], Ledger | None]) -> None:
        """Note the scenes that are there when a search is watched for the first time as known."""
        if self._read() is None:
            self._write(_State(title=self.search.title, known=_scenes(ledger())))

    def poll(self, searcher: Callable[[], Searcher], ledger: Ledger) -> tuple[Event, ...]:
        """Search new scenes and deliver their hits; return the events.

        Call :meth:`deliver` of every query first, so that a file gets what waits before what is
        new.

        Parameters
        ----------
        searcher
            Opens the index; called when there are new scenes.
        ledger
            Of the archive at the snapshot that the index pins.

        Raises
        ------
        SkysiftError
            A receiver did not take an event, which waits for the next call.
        """
        state = self._state()
        new = {n: pixels for n, pixels in _scenes(ledger).items() if state.known.get(n) != pixels}
        if not new:
            return ()
        events = self._events(searcher(), new)
        ended = self._file.stat().st_size if self._file and self._file.exists() else 0
        known = {**state.known, **new}
        self._write(
            replace(state, known=known, waiting=events, file_bytes=ended, filed=not self._file)
        )
        return self.deliver()

    def _events(self, searcher: Searcher, scenes: Mapping[str, str]) -> tuple[Event, ...]:
        """Return an event for each scene with hits."""
        chosen = self.search.where.scenes
        events = []
        for scene in sorted(scenes):
            if chosen and scene not in chosen:
                continue
            within = {**self.search.filter, "scenes": (scene,)}
            hits = replace(self.search, filter=within).answer(searcher)
            if not len(hits):
                continue
            identity = f"{self.id} {scene} {scenes[scene]}"
            records = json.loads(json.dumps(hit_records(hits.to_arrow()), default=_text))
            events.append(
                {
                    "id": json_digest({"event": identity})[:32],
                    "search": self.search.title,
                    "scene": scene,
                    "snapshot": hits.snapshot,
                    "version": hits.version,
                    "truncated": bool(hits.truncated),
                    "hits": records,
                }
            )
        return tuple(events)

    def deliver(self) -> tuple[Event, ...]:
        """Deliver the events that wait, and write after each those that still wait; return them.

        Raises
        ------
        SkysiftError
            A receiver did not take an event, which waits for the next call.
        """
        state = self._state()
        events = state.waiting
        if events and self._file is not None and not state.filed:
            _append(self._file, events, state.file_bytes)
            state = replace(state, filed=True, waiting=events if self._webhook else ())
            self._write(state)
        while state.waiting:
            if self._webhook is not None:
                self._webhook.send(state.waiting[0])
            state = replace(state, waiting=state.waiting[1:] if self._webhook else ())
            self._write(state)
        return events

    def _state(self) -> _State:
        state = self._read()
        assert state is not None, "begin() comes first"
        return state

    def _read(self) -> _State | None:
        try:
            self._seen = self._place.read()
            document = json.loads(self._seen)
            kind, version = document.pop("skysift"), document.pop("version")
            if (kind, version) != (_KIND, _VERSION):
                raise ValueError(f"it is a {kind!r} of version {version!r}, not of {_VERSION}")
            return _State(**{**document, "waiting": tuple(document["waiting"])})
        except NotFoundError:
            self._seen = b""
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptIndexError(
                f"{self._place} is not the state of a standing query ({error}); delete it, and "
                "the search begins with the scenes that come from then on"
            ) from error

    @property
    def _place(self) -> Location:
        return self._folder / self._name

    def _write(self, state: _State) -> None:
        document = {"skysift": _KIND, "version": _VERSION, **asdict(state)}
        after = json.dumps(document).encode()
        if not exchange(self._folder, self._name, self._seen, after):
            raise SkysiftError(
                f"{self._place} was written by another watch meanwhile, which goes on with it; "
                "stop one of the two"
            )
        self._seen = after


def _scenes(ledger: Ledger | None) -> dict[str, str]:
    """Return the scenes with rows, and the fingerprints of their pixels."""
    entries = {} if ledger is None else ledger.entries
    return {name: entry.fingerprint for name, entry in entries.items() if entry.rows}


def _append(file: Path, events: Sequence[Event], start: int) -> None:
    """Append events that a file does not hold; a line without an end after ``start`` goes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        begin = start if start <= size else 0  # the file was replaced meanwhile
        stream.seek(max(begin - 1, 0))
        written = stream.read()
        # Of another program's line without an end, the end is written; ours is written anew.
        foreign = begin > 0 and not written.startswith(b"\n")
        written = written[min(begin, 1) :]
        whole = written[: written.rfind(b"\n") + 1]
        if len(whole) < len(written):
            stream.truncate(begin + len(whole))
        stream.seek(0)
        held = {found.decode() for line in stream for found in _ID.findall(line)}
        new = [event for event in events if event["id"] not in held]
        lines = [json.dumps(event, sort_keys=True).encode() for event in new]
        start_line = [b""] if foreign and not whole else []
        stream.write(b"".join(line + b"\n" for line in [*start_line, *lines]))
        stream.flush()
        os.fsync(stream.fileno())


def _text(moment: Any) -> str:
    return str(moment.isoformat()).replace("+00:00", "Z")
