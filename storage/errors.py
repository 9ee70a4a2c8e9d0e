"""Every error that Skysift raises on purpose.

The tree::

    SkysiftError
    ├── ConfigError (ValueError)      a recipe, option or argument is wrong
    │   └── PictureBandsError         a picture has other bands than the encoder
    ├── CatalogError                  a catalog or one of its items cannot be used
    │   └── EmptyCatalogError         it holds nothing, or nothing for the query
    ├── SceneError                    one scene's pixels cannot be read as required
    ├── GridError                     a grid, window or coordinate does not fit
    ├── EncoderMismatchError          vectors of two encoders would be mixed
    ├── ArchiveConflictError          another writer changed the archive first
    ├── NotFoundError (KeyError)      a named thing does not exist
    ├── CorruptIndexError             a file differs from its manifest
    ├── DivergedError                 a training left the finite numbers
    └── SearchUnavailableError        part of the index cannot answer

A message names the fault, its place, got/expected and the next step, in one line, and no signature
of an address: ledgers, logs and answers keep it.
"""

from storage.signatures import without_signatures


class SkysiftError(Exception):
    """Base of every deliberate error; the command line prints it as one line, exit code 1."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_signatures(a) if isinstance(a, str) else a for a in args))


class ConfigError(SkysiftError, ValueError):
    """A recipe, an option or an argument is wrong; the command line exits with 2."""


class PictureBandsError(ConfigError):
    """A picture has not the bands that the encoder needs; ``bands`` is the number that it has."""

    def __init__(self, message: str, bands: int = 0) -> None:
        super().__init__(message)
        self.bands = bands


class CatalogError(SkysiftError):
    """A catalog, or one item of it, cannot be used."""


class EmptyCatalogError(CatalogError):
    """A catalog can be read and holds nothing, or nothing that matches the query."""


class SceneError(SkysiftError):
    """The pixels of one scene cannot be read as required; ingest quarantines the scene."""


class GridError(SkysiftError):
    """A grid, a window or a coordinate does not fit the data it is used with."""


class EncoderMismatchError(SkysiftError):
    """Vectors of two different encoders would be mixed or compared."""


class ArchiveConflictError(SkysiftError):
    """Another writer committed to the archive first, and the two changes cannot be joined."""


class NotFoundError(SkysiftError, KeyError):
    """A named thing (file, archive, snapshot, tile, index, version) does not exist."""

    def __str__(self) -> str:
        # KeyError shows its argument's repr; people want the sentence.
        return str(self.args[0]) if self.args else ""


class CorruptIndexError(SkysiftError):
    """A stored file differs from its manifest."""


class DivergedError(SkysiftError):
    """The loss, the gradient or a weight of a training is no finite number any more."""


class SearchUnavailableError(SkysiftError):
    """A part of the index cannot answer, and the caller required a complete answer."""
