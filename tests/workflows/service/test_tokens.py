"""Tokens of several indexes: rights, quotas, the file that is read again, and the names."""

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from storage.errors import ConfigError, NotFoundError
from storage.location import Location
from tests.support.service_backend import OneRow
from workflows.notebook.recipe import Recipe
from workflows.service.app import create_app, create_service
from workflows.service.settings import (
    RESERVED_NAMES,
    Limits,
    ServiceSpec,
    check_exposure,
    check_names,
    from_recipe,
    index_name,
)
from workflows.service.tokens import Access, read_token_file, token_digests

READER, MARKER, ADMIN = "reader-of-the-coast", "marker-of-the-coast", "admin-of-everything"
OWN = "own-token-of-the-service"
COAST, PRAIRIE = "coast", "prairie"


def _document(**more: object) -> dict:
    digest = hashlib.sha256(ADMIN.encode()).hexdigest()
    return {
        "tokens": [
            {"token": READER, "indexes": {COAST: "read"}, **more},
            {"token": MARKER, "indexes": {COAST: "mark", PRAIRIE: "read"}},
            {"sha256": digest, "indexes": {"*": "admin"}},
        ]
    }


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "tokens.yaml"
    path.write_text(json.dumps(_document()))
    return path


def _client(access: Access, **backends: OneRow) -> TestClient:
    backends = backends or {PRAIRIE: OneRow(), COAST: OneRow()}
    app = create_service(backends, access, limits=Limits(rate_per_s=0))
    return TestClient(app, base_url="http://127.0.0.1:8000")


def _as(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


OPERATIONS = {
    "search": ("POST", "search", "read"),
    "scenes": ("GET", "scenes", "read"),
    "index": ("GET", "index", "read"),
    "layers": ("GET", "layers/conformance", "read"),
    "picture": ("GET", "tiles/g/1/2/thumbnail.png", "read"),
    "suggestions": ("POST", "suggestions", "mark"),
    "detections": ("POST", "detections", "mark"),
    "accuracy": ("POST", "accuracy", "mark"),
    "marks": ("POST", "marks", "mark"),
    "saved-search": ("POST", "saved-search", "mark"),
}
RIGHTS = {
    (READER, COAST): "read",
    (READER, PRAIRIE): "",
    (MARKER, COAST): "mark",
    (MARKER, PRAIRIE): "read",
    (ADMIN, COAST): "admin",
    (ADMIN, PRAIRIE): "admin",
    (OWN, PRAIRIE): "admin",
}
ALLOWED = {"": (), "read": ("read",), "mark": ("read", "mark"), "admin": ("read", "mark", "admin")}


@pytest.mark.parametrize(("token", "index"), RIGHTS)
def test_a_token_does_what_its_right_on_the_index_allows(path, token, index):
    client = _client(Access(token_digests(OWN), path))
    right = RIGHTS[token, index]
    for name, (verb, route, needed) in OPERATIONS.items():
        # An empty body is refused with 422 behind the guard, and the backend is not asked.
        body = {} if verb == "POST" else None
        answer = client.request(verb, f"/v1/{index}/{route}", headers=_as(token), json=body)
        allowed = needed in ALLOWED[right]
        assert (answer.status_code == 403) != allowed, name
        assert answer.status_code in ((200, 422) if allowed else (403,)), (name, answer.text)
        if not allowed:
            assert f"on the index '{index}', and this needs {needed}" in answer.json()["message"]
    metrics = client.get("/metrics", headers=_as(token))
    assert metrics.status_code == (200 if RIGHTS.get((token, PRAIRIE)) == "admin" else 403)
    listed = client.get("/v1/indexes", headers=_as(token)).json()
    assert {one["name"]: one["right"] for one in listed["indexes"]}.get(index, "") == right
    assert listed["default"] == PRAIRIE


def test_every_route_of_the_service_needs_a_right_but_the_probes(path):
    client = _client(Access((), path))
    document = client.get("/openapi.json").json()
    for route, operations in document["paths"].items():
        address = route.replace("{index}", PRAIRIE)
        for verb in operations:
            status = client.request(verb, address).status_code
            open_to_all = route.rpartition("/")[2] in ("health", "ready")
            assert (status == 401) != open_to_all, (verb, route, status)


def test_the_named_routes_are_documented_and_an_unknown_index_is_not_found(path):
    client = _client(Access((), path))
    document = client.get("/openapi.json").json()
    (name, *_) = document["paths"]["/v1/{index}/search"]["post"]["parameters"]
    assert (name["name"], name["in"]) == ("index", "path")
    ids = [one["operationId"] for paths in document["paths"].values() for one in paths.values()]
    assert len(set(ids)) == len(ids)
    for token, known in ((ADMIN, "prairie, coast"), (READER, "coast")):
        answer = client.get("/v1/nowhere/index", headers=_as(token))
        assert (answer.status_code, answer.json()["message"]) == (
            404,
            f"no index is named 'nowhere'; this token may use {known}",
        )
    assert client.post("/v1/nowhere/search", json={}).status_code == 401
    own = {route.split("/")[2] for route in document["paths"] if route.startswith("/v1/")}
    assert own - {"{index}"} == set(RESERVED_NAMES)


@pytest.mark.parametrize("folder", [*RESERVED_NAMES, "coast 2024", "Ä", "x" * 300])
def test_a_name_from_a_folder_fits_an_address(folder: str, tmp_path: Path, monkeypatch):
    check_names([index_name(Location(f"s3://bucket/{folder}"))])
    monkeypatch.chdir(tmp_path)
    check_names([index_name(Location(folder))])


def test_each_index_answers_its_own_requests_and_the_log_names_index_and_token(path, caplog):
    caplog.set_level("INFO", "skysift.access")
    coast, prairie = OneRow(), OneRow()
    client = _client(Access((), path), prairie=prairie, coast=coast)
    body = {"vector": [1.0]}
    assert client.post("/v1/coast/search", json=body, headers=_as(READER)).status_code == 200
    assert (len(coast.requests), len(prairie.requests)) == (1, 0)
    assert client.post("/v1/search", json=body, headers=_as(MARKER)).status_code == 200
    assert client.post("/v1/prairie/search", json=body, headers=_as(MARKER)).status_code == 200
    assert (len(coast.requests), len(prairie.requests)) == (1, 2)
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    digests = [hashlib.sha256(token.encode()).hexdigest()[:8] for token in (READER, MARKER)]
    assert [(line["index"], line["token"]) for line in lines] == [
        (COAST, digests[0]),
        (PRAIRIE, digests[1]),
        (PRAIRIE, digests[1]),
    ]
    metrics = client.get("/metrics", headers=_as(ADMIN)).text
    assert 'index="coast",method="POST"' in metrics


def test_a_service_is_ready_when_all_of_its_indexes_are(path):
    coast, prairie = OneRow(), OneRow()
    client = _client(Access((), path), prairie=prairie, coast=coast)
    assert client.get("/v1/ready").status_code == 200
    coast.fault = NotFoundError("no shards")
    answer = client.get("/v1/ready")
    assert (answer.status_code, answer.json()["message"]) == (503, "index coast: no shards")
    assert client.get("/v1/prairie/ready").status_code == 200
    assert client.get("/v1/coast/ready").status_code == 503


def test_a_changed_file_is_in_force_and_a_bad_one_changes_nothing(path, caplog):
    now = [0.0]
    access = Access((), path, (COAST, PRAIRIE), lambda: now[0])
    client = _client(access)

    def after(text: str) -> int:
        path.write_text(text)
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
        now[0] += 2
        return client.get("/v1/coast/index", headers=_as(READER)).status_code

    document = _document()
    assert after(json.dumps(document)) == 200
    document["tokens"][0]["indexes"] = {COAST: "owner"}
    caplog.set_level(logging.ERROR)
    assert after(json.dumps(document)) == 200
    now[0] += 2
    client.get("/v1/coast/index", headers=_as(READER))
    (told,) = [record.getMessage() for record in caplog.records]
    assert "the right 'owner' is none of read, mark, admin" in told
    assert READER not in told
    metrics = client.get("/metrics", headers=_as(ADMIN)).text
    assert 'skysift_token_file_invalid{index="",replica=' in metrics
    assert access.faulty
    document["tokens"].pop(0)
    document["tokens"][0]["indexes"]["praire"] = "read"
    caplog.set_level(logging.WARNING)
    caplog.clear()
    assert after(json.dumps(document)) == 401
    assert not access.faulty
    (told,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert told == f"{path} has rights on praire, and the service has the indexes coast, prairie"
    path.unlink()
    now[0] += 2
    assert client.get("/v1/coast/index", headers=_as(MARKER)).status_code == 200
    assert access.faulty


def test_a_quota_is_of_the_token_and_not_of_its_addresses_or_indexes(path):
    path.write_text(json.dumps(_document(per_minute=3)))
    client = _client(Access((), path))
    asked = ["/v1/coast/index", "/v1/indexes", "/v1/coast/scenes", "/v1/coast/index"]
    answers = [client.get(where, headers=_as(READER)) for where in asked]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 20
    assert "3 requests a minute" in answers[-1].json()["message"]
    assert client.get("/v1/coast/index", headers=_as(MARKER)).status_code == 200


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"token": "short", "indexes": {"*": "read"}}, "at least 16"),
        ({"token": READER}, "indexes needs a right"),
        ({"token": READER, "sha256": "0" * 64, "indexes": {"*": "read"}}, "either token or sha256"),
        ({"sha256": "abc", "indexes": {"*": "read"}}, "64 hexadecimal digits"),
        ({"token": READER, "indexes": {"*": "write"}}, "none of read, mark, admin"),
        ({"token": READER, "indexes": {"*": "read"}, "per_minute": -1}, "per_minute"),
        ({"token": READER, "indexes": {"*": "read"}, "rate": 1}, "expected the keys"),
    ],
)
def test_a_wrong_entry_is_named_without_its_token(path, entry, word):
    path.write_text(json.dumps({"tokens": [_document()["tokens"][1], entry]}))
    with pytest.raises(ConfigError, match=word) as caught:
        read_token_file(path)
    assert "token 2" in str(caught.value)
    assert READER not in str(caught.value)


def test_a_file_that_is_no_token_file_is_refused_and_one_is_enough_beyond_loopback(path):
    assert check_exposure(ServiceSpec(host="0.0.0.0", tokens=path)) == ()
    for content in ("", "[]", "tokens: {", "tokens: []\nmore: 1"):
        path.write_text(content)
        with pytest.raises(ConfigError):
            check_exposure(ServiceSpec(host="0.0.0.0", tokens=path))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token_file(path / "none")


def test_each_index_has_its_own_folder_of_saved_searches(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    index, searches = tmp_path / "coast/index", str(tmp_path / "searches")
    index.mkdir(parents=True)
    service = {"indexes": {PRAIRIE: "prairie/index"}, "searches": searches}
    recipe.write_text(json.dumps({"index": {"uri": str(index)}, "service": service}))
    configs, _ = from_recipe(Recipe.load(recipe))
    folders = {name: str(config.searches) for name, config in configs.items()}
    assert folders == {COAST: searches, PRAIRIE: f"{searches}/{PRAIRIE}"}


@pytest.mark.parametrize("names", [["search"], ["Coast"], ["a/b"], ["", "a"], [".."]])
def test_a_name_that_is_no_part_of_an_address_is_refused(names):
    with pytest.raises(ConfigError, match="name"):
        check_names(names)


def test_without_tokens_everyone_sees_every_index():
    client = TestClient(create_app(OneRow()), base_url="http://127.0.0.1:8000")
    listed = client.get("/v1/indexes").json()
    assert listed["indexes"] == [{"name": "default", "right": "admin"}]
