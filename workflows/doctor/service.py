"""The checks of a service: its port, who answers there, its tokens and the file of them."""

import http.client
import json
from collections.abc import Sequence

from storage.errors import ConfigError
from workflows.doctor.cluster import file_findings
from workflows.doctor.findings import Finding, Probe, Verdict
from workflows.service.settings import ServiceSpec, check_exposure, check_free
from workflows.service.tokens import read_token_file, unknown_indexes

_ANSWER_S = 3.0


def service_probes(spec: ServiceSpec, indexes: Sequence[str], stated: bool) -> list[Probe]:
    """Return the probes of a service of named indexes.

    ``stated`` says that the recipe has settings of the service.
    """
    return [
        Probe("service", lambda: [port_finding(spec, stated)]),
        Probe("service tokens", lambda: token_findings(spec, indexes)),
    ]


def port_finding(spec: ServiceSpec, stated: bool = True) -> Finding:
    """Check that the port is free, or that Skysift answers there."""
    where = f"{spec.host} port {spec.port}"
    wrong: Verdict = "broken" if stated else "note"
    try:
        check_free(spec.host, spec.port)
    except ConfigError as error:
        status, answered = _who_answers(spec)
        if status == 200 and answered == "ready":
            return Finding("service", "ok", f"Skysift answers at {where}, ready")
        if answered:
            advice = "its stderr says more: `skysift serve` prints the stages of its start"
            found = f"Skysift at {where} is not ready: {answered}"
        else:
            found = str(error).partition(";")[0]
            advice = (
                f"`ss -ltnp 'sport = :{spec.port}'` shows the program; or `skysift serve --port "
                f"{spec.port + 1}`"
            )
        return Finding("service", wrong, found, advice)
    return Finding("service", "ok", f"{where} is free")


def _who_answers(spec: ServiceSpec) -> tuple[int, str]:
    """Return status and text of a service's readiness; empty where another program answers."""
    host = "127.0.0.1" if spec.host in {"0.0.0.0", "::"} else spec.host
    connection = http.client.HTTPConnection(host, spec.port, timeout=_ANSWER_S)
    try:
        connection.request("GET", "/v1/ready")
        answer = connection.getresponse()
        document = json.loads(answer.read(100_000))
    except (OSError, ValueError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
    answered = document if isinstance(document, dict) else {}
    return answer.status, str(answered.get("status") or answered.get("detail") or "")


def token_findings(spec: ServiceSpec, indexes: Sequence[str]) -> Sequence[Finding]:
    """Check that a service beyond this machine has tokens, and that their file is right.

    ``indexes`` are the names of the recipe's indexes; `skysift serve` may name others.
    """
    readable = file_findings("service.access", spec.tokens)
    if spec.tokens is not None and not spec.tokens.exists():
        return readable
    try:
        digests = check_exposure(spec)
    except ConfigError as error:
        advice = "`export SKYSIFT_TOKEN=$(openssl rand -hex 32)`"
        if spec.tokens:
            advice = f"correct {spec.tokens}; docs/service.md has an example"
        return [*readable, Finding("service tokens", "broken", str(error), advice)]
    if spec.tokens and (strays := unknown_indexes(read_token_file(spec.tokens), indexes)):
        advice = f"correct {spec.tokens}, or name the indexes in service.indexes"
        return [*readable, Finding("service tokens", "note", f"{spec.tokens} {strays}", advice)]
    where = f" and those of {spec.tokens}" if spec.tokens else ""
    found = f"{len(digests)} of SKYSIFT_TOKEN or service.token{where}"
    return [*readable, Finding("service tokens", "ok", found)]
