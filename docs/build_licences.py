"""Make ``docs/licences.md``: the licence of everything that an installed Skysift brings along.

python docs/build_licences.py
"""

from collections import deque
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).parent / "licences.md"
_OPENING = """\
# Licences

Skysift is Apache-2.0. What `pip install` brings along, with the licence that each package states
about itself; made by `make docs`. MapLibre GL JS (BSD-3-Clause), Swagger UI
(Apache-2.0) and land, borders and places of Natural Earth (public domain) are part of the wheel.

| package | licence |
|---|---|
"""
# What the packages' own metadata leaves out.
_KNOWN = {"icechunk": "MIT", "odc-stac": "Apache-2.0"}


def installed(root: str = "skysift") -> dict[str, Distribution]:
    """Return the distributions that ``root`` needs on this platform, by name."""
    found: dict[str, Distribution] = {}
    waiting: deque[tuple[str, frozenset[str]]] = deque([(root, frozenset({""}))])
    seen = set()
    while waiting:
        name, extras = waiting.popleft()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        here = distribution(name)
        found[here.name.lower().replace("_", "-")] = here
        for line in here.requires or ():
            needed = Requirement(line)
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in extras):
                waiting.append((needed.name, frozenset({"", *needed.extras})))
    return found


def licence(package: Distribution) -> str:
    """Return what a package says about its licence, in a few words."""
    said = package.metadata
    classified = [
        line.rpartition(" :: ")[2]
        for line in said.get_all("Classifier") or ()
        if line.startswith("License ::") and not line.endswith("OSI Approved")
    ]
    text = said.get("License-Expression") or "; ".join(classified) or said.get("License") or ""
    first = text.strip().splitlines()[0][:80] if text.strip() else ""
    return first or _KNOWN.get(package.name, "not stated")


if __name__ == "__main__":
    rows = sorted((name, licence(package)) for name, package in installed().items())
    lines = [f"| {name} | {said} |" for name, said in rows if name != "skysift"]
    PAGE.write_text(_OPENING + "\n".join(lines) + "\n")
