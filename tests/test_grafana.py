"""The dashboard asks for metrics that exist: the ones of the service, and those of Ray."""

import json
import re
from pathlib import Path

import ray

from tests.support.paths import REPOSITORY
from workflows.service.telemetry import Metrics

DASHBOARD = REPOSITORY / "deploy" / "grafana" / "skysift.json"


def test_every_metric_of_the_dashboard_exists():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    metrics = Metrics()
    metrics.answered("GET", "/", 200, 0.1)
    metrics.entered(1)
    metrics.thumbnail("drawn")
    ours = metrics.text().decode()
    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    theirs = " ".join(path.read_text() for path in folder.glob("*.py"))
    names = set(re.findall(r"\b(?:skysift|process|ray)_[a-z_]+(?=[\[{)])", expressions))
    assert len(names) > 15
    for name in names:
        assert name in (theirs if name.startswith("ray_") else ours), name


def test_panels_explain_themselves_and_do_not_overlap():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert all(panel["description"] and panel["title"] for panel in panels)
    assert len({(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}) == len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
