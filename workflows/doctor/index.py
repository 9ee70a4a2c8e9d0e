"""The check of an index: whether its manifest can be read, and the recall that it has."""

from storage.errors import CorruptIndexError, SkysiftError
from storage.location import Location
from workflows.doctor.findings import Finding, Probe


def index_probe(index: Location) -> Probe:
    """Return the probe of the index of a recipe."""
    return Probe("index", lambda: index_findings(index))


def index_findings(index: Location) -> list[Finding]:
    """Say what the current version finds, as its build measured it; nothing where there is none."""
    try:  # they need FAISS, whose own check says how to install it
        from pipeline.indexing.maintenance import recall_in_words
        from storage.index.manifest import read_manifest
    except ImportError:
        return []
    try:
        manifest = read_manifest(index)
    except CorruptIndexError as error:
        return [
            Finding("index", "broken", str(error), "restore the file, or build the index again")
        ]
    except SkysiftError:  # the check of its place says why
        return []
    found = f"version {manifest.version}, recall@10 {recall_in_words(manifest)}"
    return [Finding("index", "note" if manifest.advice else "ok", found, manifest.advice)]
