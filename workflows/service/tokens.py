"""Tokens: which indexes each may use, with which right, how often; from a file that is re-read.

Only the SHA-256 of a token is kept, and compared in constant time. A file that cannot be read
changes nothing: the tokens of its last good content stay in force.
"""

import hashlib
import hmac
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from storage.errors import ConfigError

logger = logging.getLogger(__name__)

RIGHTS = ("read", "mark", "admin")
"""Each right includes those before it."""
EVERY = "*"
_FIELDS = {"token", "sha256", "indexes", "per_minute"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MIN_TOKEN_CHARS = 16
_MOST_FILE_BYTES = 1_000_000
_LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """What a token allows: a right by the name of an index (``*`` for every other index).

    ``per_minute`` bounds its requests, on every index together; 0 does not.
    """

    digest: str = field(repr=False)
    rights: Mapping[str, str]
    per_minute: int = 0

    @property
    def short(self) -> str:
        """The first characters of the digest, for logs."""
        return self.digest[:8]

    def right(self, index: str) -> str:
        """Return the right on an index; empty when there is none."""
        return self.rights.get(index, self.rights.get(EVERY, ""))

    def allows(self, index: str, right: str) -> bool:
        """Tell whether a token may do something.

        Examples
        --------
        >>> grant = Grant(digest="", rights={"coast": "mark"})
        >>> grant.allows("coast", "read"), grant.allows("coast", "admin")
        (True, False)
        """
        given = self.right(index)
        return bool(given) and RIGHTS.index(given) >= RIGHTS.index(right)


ANYONE = Grant(digest="", rights={EVERY: RIGHTS[-1]})
"""Of a service without tokens."""


class Access:
    """The tokens of a service: those of its settings, with every right, and those of a file.

    Parameters
    ----------
    digests
        SHA-256 of tokens with every right.
    path
        A token file, read now and again when it has changed.
    indexes
        Names of the service's indexes; a line of the log has those of the file that are none.
    clock
        Monotonic clock, in seconds.

    Raises
    ------
    ConfigError
        The file is missing or invalid.
    """

    def __init__(
        self,
        digests: Sequence[str] = (),
        path: Path | None = None,
        indexes: Collection[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = tuple(Grant(digest=digest, rights=ANYONE.rights) for digest in digests)
        self._path, self._indexes, self._clock = path, indexes, clock
        self._lock = threading.Lock()
        self._seen = _state(path) if path else None
        self._of_file = self._read(path) if path else ()
        self._looked_s = clock()
        self.faulty = False

    @property
    def open(self) -> bool:
        """Whether no token is needed."""
        return not self._own and self._path is None

    def grant(self, token: str) -> Grant | None:
        """Return what a token allows, None when it is not valid; takes constant time."""
        if self.open:
            return ANYONE
        self._follow()
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = [g for g in (*self._own, *self._of_file) if hmac.compare_digest(digest, g.digest)]
        return found[0] if found else None

    def _read(self, path: Path) -> tuple[Grant, ...]:
        grants = read_token_file(path)
        if self._indexes is not None and (strays := unknown_indexes(grants, self._indexes)):
            logger.warning("%s %s", path, strays)
        return grants

    def _follow(self) -> None:
        """Read the file again when it has changed, looking at most once a second."""
        with self._lock:
            if self._path is None or self._clock() - self._looked_s < _LOOK_S:
                return
            self._looked_s = self._clock()
            state = _state(self._path)
            if state == self._seen:
                return
            self._seen = state
            try:
                self._of_file = self._read(self._path)
                self.faulty = False
                logger.info("the tokens of %s are in force", self._path)
            except ConfigError as error:
                self.faulty = True
                logger.error("the tokens from before stay in force: %s", error)


def token_digests(tokens: str) -> tuple[str, ...]:
    """Return the digests of a token, or of several separated by commas.

    Raises
    ------
    ConfigError
        A token is too short to be secure.
    """
    return tuple(_digest(token.strip()) for token in tokens.split(","))


def read_token_file(path: Path) -> tuple[Grant, ...]:
    """Read a token file, in YAML or JSON.

    Raises
    ------
    ConfigError
        The file is missing, too long or invalid.
    """
    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise ConfigError(f"{path}: longer than {_MOST_FILE_BYTES:,} bytes")
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:  # its text may quote a token
        raise ConfigError(f"the token file {path} is not valid YAML or JSON") from error
    entries = document.get("tokens") if isinstance(document, dict) else None
    if not isinstance(entries, list) or set(document) != {"tokens"}:
        raise ConfigError(f"{path}: expected one key `tokens` with a list of tokens")
    grants = tuple(_grant(f"{path}: token {n}", entry) for n, entry in enumerate(entries, 1))
    if len({grant.digest for grant in grants}) < len(grants):
        raise ConfigError(f"{path}: a token is listed twice")
    return grants


def unknown_indexes(grants: Iterable[Grant], indexes: Collection[str]) -> str:
    """Return what is said of a token file that names other indexes; empty where it names none.

    Examples
    --------
    >>> unknown_indexes([Grant(digest="", rights={"cost": "read", "*": "read"})], ["coast"])
    'has rights on cost, and the service has the indexes coast'
    """
    named = {name for grant in grants for name in grant.rights}
    unknown, known = ", ".join(sorted(named - {EVERY, *indexes})), ", ".join(indexes)
    return unknown and f"has rights on {unknown}, and the service has the indexes {known}"


def _grant(where: str, entry: Any) -> Grant:
    """Return one entry of a token file; ``where`` begins the message of an error."""
    if not isinstance(entry, dict) or not entry.keys() <= _FIELDS:
        raise ConfigError(f"{where}: expected the keys {', '.join(sorted(_FIELDS))}")
    token, digest = entry.get("token"), entry.get("sha256")
    if (token is None) == (digest is None):
        raise ConfigError(f"{where}: give either token or sha256")
    if digest is not None and not _SHA256.fullmatch(str(digest)):
        raise ConfigError(f"{where}: sha256 is not 64 hexadecimal digits in lower case")
    rights, per_minute = entry.get("indexes"), entry.get("per_minute", 0)
    if not isinstance(rights, dict) or not rights:
        raise ConfigError(f"{where}: indexes needs a right by the name of an index, or by `*`")
    if wrong := [str(right) for right in rights.values() if right not in RIGHTS]:
        raise ConfigError(f"{where}: the right {wrong[0]!r} is none of {', '.join(RIGHTS)}")
    if type(per_minute) is not int or per_minute < 0:
        raise ConfigError(f"{where}: per_minute is not a whole number of requests, 0 or more")
    return Grant(
        digest=str(digest) if token is None else _digest(str(token), where),
        rights={str(name): right for name, right in rights.items()},
        per_minute=per_minute,
    )


def _digest(token: str, where: str = "SKYSIFT_TOKEN or service.token") -> str:
    if len(token) < _MIN_TOKEN_CHARS:
        raise ConfigError(
            f"{where}: a service token has {len(token)} characters, at least {_MIN_TOKEN_CHARS} "
            "are needed; make one with `openssl rand -hex 32`"
        )
    return hashlib.sha256(token.encode()).hexdigest()


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
