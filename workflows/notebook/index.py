"""Open an index or an archive by its address alone."""

import atexit
from contextlib import ExitStack
from typing import Any

from pipeline.runtime.cluster import joins_cluster, ray_session
from pipeline.search.query import QueryResolver, load_archive_encoder
from pipeline.search.question import Question
from pipeline.search.searcher import Searcher
from storage.archive.reader import Archive
from storage.errors import NotFoundError
from storage.index.manifest import current_version, list_versions, read_pointer
from storage.location import Location
from storage.scene import CatalogSpec
from workflows.notebook.pictures import ArchivePictures

_connection = ExitStack()
atexit.register(_connection.close)


class Index(Question):
    """An index opened for questions: one without an example and without a condition.

    Examples
    --------
    >>> index = Index.open("work/index")                                          # doctest: +SKIP
    >>> index.like(lonlat=(103.75, 17.92)).where(since="2024-01-01").top(20)      # doctest: +SKIP
    """

    @classmethod
    def open(
        cls,
        uri: str | Location,
        *,
        version: str | None = None,
        encoder: str | Location | None = None,
        scenes: str | Location | CatalogSpec | None = None,
        cluster: bool | None = None,
        replicas: int = 1,
    ) -> "Index":
        """Open an index.

        Parameters
        ----------
        uri
            The folder of the index.
        version
            The version to search; by default the current version.
        encoder
            The bundle of the archive's encoder, where it was moved; only pictures as examples need
            it.
        scenes
            A catalog whose scenes the pictures of tiles are drawn from; None for the scenes that
            the archive remembers. Published embeddings have no others.
        cluster
            Where shards are searched. None: by the search actors of the Ray cluster, if this
            process is connected to one (or ``RAY_ADDRESS`` names one) and actors of this index run
            there; else in this process. True: by search actors, which are started where there are
            none. False: in this process.
        replicas
            Nodes that hold each shard, where actors are started.

        Raises
        ------
        NotFoundError
            There is no such index or version.
        CorruptIndexError
            A file is missing or differs from the manifest.
        SkysiftError
            The cluster cannot be joined.
        """
        place = Location.of(uri).absolute
        searcher = _searcher(place, version or current_version(place), cluster, replicas)
        resolver = QueryResolver(searcher, load=lambda: load_archive_encoder(searcher, encoder))
        if scenes is not None and not isinstance(scenes, CatalogSpec):
            scenes = CatalogSpec(source=scenes)
        pictures = ArchivePictures(searcher, scenes)
        return cls(searcher=searcher, resolver=resolver, pictures=pictures)

    @property
    def archive(self) -> Archive:
        """The archive at the snapshot that the index pins."""
        return self.searcher.archive

    def facts(self) -> dict[str, Any]:
        """Return those of the searcher."""
        return self.searcher.facts()


def open(uri: str | Location, **options: Any) -> Any:  # noqa: A001
    """Open an index or an archive, whichever is there.

    Parameters
    ----------
    uri
        The folder.
    options
        Those of :meth:`Index.open` for an index; ``snapshot`` for an archive.

    Returns
    -------
    Index or Archive
        Typed as ``Any``: which it is, only the folder can tell. :meth:`Index.open` and
        :meth:`storage.archive.reader.Archive.open` are typed.

    Raises
    ------
    NotFoundError
        There is neither.
    """
    place = Location.of(uri).absolute
    if read_pointer(place) or list_versions(place):
        return Index.open(place, **options)
    if Archive.exists(place):
        return Archive.open(place, **options)
    raise NotFoundError(
        f"{place} is neither an index nor an archive; `skysift index build` makes an index, "
        "`skysift ingest` an archive"
    )


def _searcher(index: Location, version: str, cluster: bool | None, replicas: int) -> Searcher:
    if cluster or (cluster is None and joins_cluster(None)):
        from pipeline.search.fleet import is_served

        _connect()
        if cluster or is_served(index, version):
            return Searcher.connect(index, version=version, replicas=replicas)
    return Searcher.local(index, version=version)


def _connect() -> None:
    """Be connected to Ray until the process ends."""
    import ray

    if not ray.is_initialized():
        _connection.enter_context(ray_session())
