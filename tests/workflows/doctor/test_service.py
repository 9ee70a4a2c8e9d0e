"""The port of a service, who answers there, and its tokens."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from workflows.cli import main
from workflows.doctor.service import port_finding, token_findings
from workflows.service.settings import ServiceSpec


class _Service(http.server.BaseHTTPRequestHandler):
    status, told = 200, "ready"

    def do_GET(self) -> None:
        kind = type(self)
        ok = kind.status == 200
        body = json.dumps({"status": kind.told} if ok else {"detail": kind.told}).encode()
        self.send_response(kind.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_taken_port_is_named_with_the_command_that_shows_by_whom():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        threading.Thread(target=lambda: taken.accept()[0].close(), daemon=True).start()
        finding = port_finding(ServiceSpec(port=port))
        assert finding.verdict == "broken"
        assert f"`ss -ltnp 'sport = :{port}'`" in finding.advice
    assert port_finding(ServiceSpec(port=port)).verdict == "ok"


def test_a_service_of_skysift_there_is_asked_whether_it_is_ready(service, monkeypatch):
    spec = ServiceSpec(port=service)
    assert port_finding(spec).verdict == "ok"
    monkeypatch.setattr(_Service, "status", 503)
    monkeypatch.setattr(_Service, "told", "the archive is gone")
    assert port_finding(spec).verdict == "broken"
    assert "the archive is gone" in port_finding(spec).found


def test_tokens_are_there_and_their_file_is_for_its_user_only(tmp_path: Path):
    assert [one.verdict for one in token_findings(ServiceSpec(), ["coast"])] == ["ok"]
    (outside,) = token_findings(ServiceSpec(host="0.0.0.0"), ["coast"])
    assert outside.verdict == "broken"
    assert "`export SKYSIFT_TOKEN=$(openssl rand -hex 32)`" in outside.advice
    path = tmp_path / "tokens.yaml"
    spec = ServiceSpec(host="0.0.0.0", tokens=path)
    assert [one.verdict for one in token_findings(spec, ["coast"])] == ["broken"]
    path.write_text(json.dumps({"tokens": [{"token": "0" * 32, "indexes": {"*": "read"}}]}))
    path.chmod(0o644)
    readable, _ = token_findings(spec, ["coast"])
    assert readable.advice == f"`chmod 600 {path}`"
    path.chmod(0o600)
    assert [one.verdict for one in token_findings(spec, ["coast"])] == ["ok", "ok"]
    path.write_text(json.dumps({"tokens": [{"token": "0" * 32, "indexes": {"cost": "read"}}]}))
    _, named = token_findings(spec, ["coast"])
    assert named.verdict == "note"
    assert named.found.endswith("has rights on cost, and the service has the indexes coast")
    path.write_text("tokens: 5")
    assert token_findings(spec, ["coast"])[1].verdict == "broken"


def test_a_taken_port_stops_only_who_wants_it(capsys, tmp_path: Path):
    """A recipe that states nothing of its service is mostly not served from here."""
    recipe = tmp_path / "recipe.yaml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        recipe.write_text(
            f"index: {{uri: {tmp_path}}}\nservice: {{port: {taken.getsockname()[1]}}}\n"
        )
        with pytest.raises(SystemExit):
            main(["doctor", "--no-ray", "-r", str(recipe), "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    (found,) = [each for each in findings if each["what"] == "service"]
    assert found["verdict"] == "broken"
    assert port_finding(ServiceSpec(host="192.0.2.9"), stated=False).verdict == "note"
