"""The checks of places: the object store with its clock and its credentials, and folders.

Whether a place may be written is known where it is local only: a store tells when something is
written, which a check does not do.
"""

import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path

from storage.errors import NotFoundError, SkysiftError
from storage.location import Location
from workflows.doctor.facts import existing
from workflows.doctor.findings import Finding, Probe, first_line

INPUTS = ("catalog.source", "dataset.source", "dataset.landcover.href", "dataset.marks")
"""Recipe keys of places that a command only reads; other places may come to be."""
_AMAZON = "https://s3.{region}.amazonaws.com"
_ANSWER_S, _STORE_S = 3.0, 20.0
_SKEW_S, _MOST_SKEW_S = 30.0, 900.0
"""Difference of clocks worth a note, and that beyond which S3 refuses every request, in seconds."""
_SYNCHRONISE = "`sudo chronyc makestep`, or `sudo timedatectl set-ntp true`"
_REASONS = {
    "RequestTimeTooSkewed": f"set this machine's clock: {_SYNCHRONISE}",
    "difference between the request time": f"set this machine's clock: {_SYNCHRONISE}",
    "Unable to locate credentials": "`export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...`, "
    "`aws sso login`, or storage.anonymous: true for a public bucket",
    "expired": "renew them: `aws sso login`, or export a new AWS_SESSION_TOKEN",
    "Access Key Id you provided does not exist": "`aws configure list` shows which key is used and "
    "where it is from; export the key of this store",
    "signature": "the secret does not belong to the key: export AWS_SECRET_ACCESS_KEY again",
    "Denied": "let the policy of this key list, read and write there; `aws sts "
    "get-caller-identity` tells whose key it is",
    "Forbidden": "let the policy of this key list, read and write there; `aws sts "
    "get-caller-identity` tells whose key it is",
}
"""Text of a store's refusal -> its repair."""


def place_probes(places: Mapping[str, Location]) -> list[Probe]:
    """Return the probes of the places of a recipe by their keys: one a store, one a folder."""
    stores: dict[str, dict[str, Location]] = {}
    probes = []
    for key, place in places.items():
        if place.is_local:
            probes.append(Probe(key, partial(_of_folder, key, place)))
        else:
            stores.setdefault(endpoint_of(place), {})[key] = place
    for endpoint, named in stores.items():
        keys = ", ".join(named)
        look = partial(store_findings, endpoint, named)
        probes.append(Probe(keys, look, limit_s=_STORE_S))
    return probes


def _of_folder(key: str, place: Location) -> list[Finding]:
    return [place_finding(key, place)]


def endpoint_of(place: Location) -> str:
    """Return the address of the object store that holds a place."""
    options = place.options.resolved()
    return options.endpoint_url or _AMAZON.format(region=options.region or "us-east-1")


def store_findings(endpoint: str, places: Mapping[str, Location]) -> list[Finding]:
    """Look at an object store, then at its places; these are left out where nothing answers."""
    try:
        skew_s = _clock_skew_s(endpoint)
    except (OSError, ValueError) as error:
        advice = (
            f"`curl -I {endpoint}` has to answer: check storage.endpoint_url (or "
            "AWS_ENDPOINT_URL), DNS, the proxy and the firewall"
        )
        found = f"{endpoint} does not answer ({_reason(error)}); it holds {', '.join(places)}"
        return [Finding("object store", "broken", found, advice)]
    findings = [Finding("object store", "ok", f"{endpoint} answers")]
    if skew_s is not None:
        findings.append(clock_finding(f"the object store at {endpoint}", skew_s))
    return [*findings, *(place_finding(key, place) for key, place in places.items())]


def _reason(error: BaseException) -> str:
    return first_line(getattr(error, "reason", error)) if isinstance(error, OSError) else "no URL"


def _clock_skew_s(endpoint: str) -> float | None:
    """Return by how many seconds this clock is ahead of a server's; None where it tells no time."""
    request = urllib.request.Request(endpoint, method="HEAD")
    if request.type not in {"http", "https"}:
        raise ValueError(f"{endpoint} is not an http(s) address")
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
            stated = answer.headers.get("Date")
    except urllib.error.HTTPError as refusal:  # an answer all the same
        stated = refusal.headers.get("Date")
        refusal.close()
    return time.time() - parsedate_to_datetime(stated).timestamp() if stated else None


def clock_finding(other: str, ahead_s: float) -> Finding:
    """Judge this machine's clock by how many seconds it is ahead of another.

    Examples
    --------
    >>> clock_finding("the object store", -1200).found
    '1,200 s behind the object store; its requests are refused'
    """
    found = f"{abs(ahead_s):,.0f} s {'ahead of' if ahead_s > 0 else 'behind'} {other}"
    if abs(ahead_s) < _SKEW_S:
        return Finding("clock", "ok", found)
    if abs(ahead_s) < _MOST_SKEW_S:
        return Finding(
            "clock",
            "note",
            f"{found}; from {_MOST_SKEW_S:.0f} s requests are refused",
            _SYNCHRONISE,
        )
    return Finding("clock", "broken", f"{found}; its requests are refused", _SYNCHRONISE)


def place_finding(key: str, place: Location) -> Finding:
    """Check that the place of a recipe key exists or can be made."""
    try:
        if place.exists():
            return Finding(key, "ok", f"{place} exists")
    except SkysiftError as error:
        return _refused(key, place, error)
    try:
        place.ask()
    except NotFoundError:
        bucket = place.uri.removeprefix("s3://").partition("/")[0]
        advice = f"`aws s3 mb s3://{bucket}` makes it; or correct the name"
        return Finding(key, "broken", f"{place}: there is no bucket {bucket}", advice)
    except SkysiftError as error:
        return _refused(key, place, error)
    if key in INPUTS:
        advice = f"`--set {key}=...`, or correct the recipe"
        return Finding(key, "broken", f"{place} does not exist", advice)
    if place.is_local and (fault := _cannot_be_made(place.path)):
        return Finding(key, "broken", f"{place} does not exist and cannot be written", fault)
    return Finding(key, "note", f"{place} can be reached; nothing is there yet")


def _refused(key: str, place: Location, error: SkysiftError) -> Finding:
    """Return the finding of a refusal, with the reason that the store gives when it is asked."""
    text = str(error)
    try:
        place.ask()
    except SkysiftError as refusal:
        text = str(refusal)
    advice = next((advice for mark, advice in _REASONS.items() if mark in text), "")
    return Finding(key, "broken", text, advice or "check the credentials, the network and the disk")


def _cannot_be_made(path: Path) -> str:
    """Return the repair where a folder cannot be made; empty where it can."""
    parent = existing(path)
    blocked = [part for part in path.absolute().parents if part.exists() and not part.is_dir()]
    if blocked:
        return f"{blocked[0]} is a file: choose another place, or move the file"
    if not os.access(parent, os.W_OK):
        return f"`sudo chown $USER {parent}`, or choose another place"
    return ""
