"""Jobs: what travels to the cluster, what never does, and what comes back."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.errors import ConfigError, NotFoundError, SkysiftError
from tests.support.http_server import Answers, answering
from tests.support.own_losses import write_losses
from workflows.recipe.load import packaged_recipes
from workflows.recipe.schema import Recipe
from workflows.recipe.sections import Key, keys_of, section_in
from workflows.submit import (
    Submission,
    asks_for_token,
    connect,
    follow,
    is_loopback,
    job_result,
    package,
    refuse_secrets,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def test_code_and_recipe_are_packaged_and_the_arguments_name_the_copy(tmp_path):
    recipe = tmp_path / "world.yaml"
    recipe.write_text("name: world\n")
    folder = tmp_path / "package"
    arguments = package(["ingest", "-r", str(recipe), "--archive", "s3://b/a"], folder)
    assert arguments == ["ingest", "-r", "recipe-2.yaml", "--archive", "s3://b/a"]
    assert (folder / "recipe-2.yaml").read_text() == "name: world\n"
    assert package([f"--recipe={recipe}"], tmp_path / "2") == ["--recipe=recipe-0.yaml"]
    assert package(["-r", "naip-series"], tmp_path / "3") == ["-r", "naip-series"]
    assert (folder / "workflows" / "cli.py").is_file()
    assert (folder / "workflows" / "recipes" / "aid.yaml").is_file()
    assert not list(folder.rglob("__pycache__"))


def test_code_of_ones_own_travels_with_the_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_losses(tmp_path)
    package_folder = tmp_path / "mine" / "deep"
    package_folder.mkdir(parents=True)
    for place in (package_folder.parent, package_folder):
        (place / "__init__.py").write_text("")
    recipe = tmp_path / "world.yaml"
    recipe.write_text("training: {loss: 'mine.deep:Loss'}\n")
    named = {
        "option": ["train", "--loss", "my_losses:HardNegatives"],
        "joined": ["train", "--loss=my_losses:HardNegatives"],
        "set": ["train", "--set", "training.loss=my_losses:HardNegatives"],
    }
    for name, arguments in named.items():
        assert package(arguments, tmp_path / name) == arguments
        assert (tmp_path / name / "my_losses.py").is_file()
    package(["train", "-r", str(recipe)], tmp_path / "recipe")
    assert (tmp_path / "recipe" / "mine" / "deep" / "__init__.py").is_file()
    package(["dataset", "import", "--importer", "my_losses:by_folder"], tmp_path / "import")
    assert (tmp_path / "import" / "my_losses.py").is_file()
    recipe.write_text("dataset: {importer: 'mine.deep:read'}\n")
    package(["dataset", "import", "-r", str(recipe)], tmp_path / "imports")
    assert (tmp_path / "imports" / "mine" / "deep" / "__init__.py").is_file()
    package(["train", "--loss", "macl"], tmp_path / "none")
    assert not (tmp_path / "none" / "my_losses.py").exists()
    with pytest.raises(NotFoundError, match="no module gone"):
        package(["train", "--loss", "gone:Loss"], tmp_path / "gone")


@pytest.mark.parametrize(
    ("submission", "word"),
    [
        (Submission(arguments=("ingest",), environment={"AWS_SECRET_ACCESS_KEY": "x"}), "--env"),
        (Submission(arguments=("ingest", "--set", "storage.secret_access_key=x")), "--set storage"),
        (Submission(arguments=("serve", "--set=service.token=x")), "--set service.token"),
    ],
)
def test_a_credential_is_refused(submission, word):
    with pytest.raises(ConfigError, match=word):
        refuse_secrets(submission)


SPELLINGS = [
    "storage={secret_access_key: abc123}",
    'storage={"secret_access_key": "abc123"}',
    'storage={"secret\\x5faccess_key": "abc123"}',
    "storage={<<: {secret_access_key: abc123}}",
    "storage={secret_access_key: 123}",
    "storage={x: &k secret_access_key, *k : abc123}",
    "storage=[{secret_access_key: abc123}]",
    "storage={secret_access_key: [abc123]}",
    "storage={secret_access_key: {a: abc123}}",
    "storage={secret_access_key: '${KEY:-abc123}'}",
    "storage={secret_access_key: !!str abc123}",
    "storage={SECRET_ACCESS_KEY: abc123}",
    "storage={secret-access-key: abc123}",
    "storage={secret_access_key: abc123",
    "storage={session_token: abc123}",
    "storage={access_key_id: abc123}",
    "service={token: 0123456789abcdef}",
    "service.token=0123456789abcdef,fedcba9876543210",
    "storage.secret_access_key=abc123",
    "STORAGE.SECRET_ACCESS_KEY=abc123",
    "catalog.source=https://me:abc123@host/stac",
    "catalog.source=https://host/stac?sig=abc123",
    "catalog={allow: ['https://host/?X-Amz-Signature=abc123']}",
    "name=AKIAIOSFODNN7EXAMPLE",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("option", [["--set", "{}"], ["--set={}"], ["-s", "{}"], ["-s{}"]], ids=str)
def test_a_credential_is_refused_however_an_option_spells_it(spelling, option):
    arguments = ("ingest", *(part.format(spelling) for part in option))
    with pytest.raises(ConfigError) as caught:
        refuse_secrets(Submission(arguments=arguments))
    assert not re.search("123|cdef|AKIA", str(caught.value))


@pytest.mark.parametrize(
    "text",
    [
        "storage: {secret_access_key: abc123}\nstorage: {region: x}\n",
        "storage: {region: x}\nstorage: {secret_access_key: abc123}\n",
        "x: &s abc123\nstorage: {secret_access_key: *s}\n",
        "x: &s {secret_access_key: abc123}\nstorage: *s\n",
        "x: &s {secret_access_key: abc123}\nstorage: {<<: *s}\n",
        "storage:\n  ? secret_access_key\n  : abc123\n",
        'storage:\n  "secret_access\\u005fkey": abc123\n',
        "storage:\n  secret_access_key: >\n    abc123\n",
        "storage:\n  region: x\n#  secret_access_key: abc123\n",
        "service:\n  token: [abc123]\n",
        "# token: abc123\n",
        "catalog:\n  source: https://me:abc123@host/stac\n",
        "catalog:\n  source: https://me:${P:-abc123}@host/stac\n",
        "catalog:\n  source: s3://b/x?X-Amz-Signature=abc123\n",
        "# https://me:abc123@host/\n",
    ],
)
@pytest.mark.parametrize(
    "option", [["-r", "{}"], ["-r{}"], ["--recipe", "{}"], ["--recipe={}"]], ids=str
)
def test_a_recipe_with_a_credential_is_refused_however_it_is_spelled(tmp_path, text, option):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    arguments = ("ingest", *(part.format(recipe) for part in option))
    with pytest.raises(ConfigError, match=r"r\.yaml") as caught:
        refuse_secrets(Submission(arguments=arguments))
    assert "abc123" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, "abc123") for name in ("OPENAI_API_KEY", "DB_PASS", "PGPASSWORD", "MYSQL_PWD")],
        *[(name, "abc123") for name in ("github_token", "AWS_ACCESS_KEY_ID", "GDAL_HTTP_USERPWD")],
        *[(name, "abc123") for name in ("Key", "SSH_PRIVATE_KEY", "AZURE_STORAGE_SAS")],
        ("DATABASE_URL", "postgres://me:abc123@host/db"),
        ("PROXY", "http://abc123@proxy:3128"),
        ("SETTINGS", '{"secret_access_key": "abc123"}'),
        ("GDAL_HTTP_HEADERS", "Authorization: Bearer abc123"),
        ("LICENCE", "-----BEGIN RSA PRIVATE KEY-----\nabc123"),
        ("HARMLESS", "own-credential-abc123"),
    ],
)
def test_a_credential_in_the_environment_of_a_job_is_refused(monkeypatch, name, value):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "own-credential-abc123")
    with pytest.raises(ConfigError, match=f"--env {name}") as caught:
        refuse_secrets(Submission(arguments=("ingest",), environment={name: value}))
    assert "abc123" not in str(caught.value)


def test_what_holds_no_credential_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "own-credential-abc123")
    recipe = tmp_path / "r.yaml"
    keys = "  secret_access_key: ${AWS_KEY}\n  session_token:\n  access_key_id: ~\n"
    text = f"storage:\n{keys}service: {{token: '${{TOKEN}}'}}\n"
    recipe.write_text(f"{text}catalog: {{source: 'https://me:${{P}}@host/stac?a=b'}}\n")
    plain = {"RAY_AUTH_MODE": "token", "TOKENIZERS_PARALLELISM": "false", "MONKEY": "1", "A": "x=y"}
    arguments = ("ingest", "-r", str(recipe), "--set", "grid={tile_px: 64, crs: 'EPSG:32648'}")
    more = ("--set", "catalog.query.polygon=POLYGON ((0 0, 1 0, 1 1, 0 0))", "--bbox=1", "-k=[")
    refuse_secrets(Submission(arguments=arguments + more, environment=plain))
    for name in packaged_recipes():
        file = REPOSITORY / "workflows" / "recipes" / f"{name}.yaml"
        refuse_secrets(Submission(arguments=("train", "-r", str(file))))


def test_the_names_of_credentials_are_the_secret_keys_of_recipes():
    secret = {path: known.is_secret for path, known in _keys(Recipe)}
    assert {path for path, is_secret in secret.items() if is_secret}
    for path, is_secret in secret.items():
        submission = Submission(arguments=("ingest", "--set", f"{path}=abc"))
        with pytest.raises(ConfigError) if is_secret else contextlib.nullcontext():
            refuse_secrets(submission)


def _keys(section: type, above: str = "") -> Iterator[tuple[str, Key]]:
    for name, known in keys_of(section).items():
        yield f"{above}{name}", known
        if inner := section_in(known.annotation):
            yield from _keys(inner, f"{above}{name}.")


@pytest.mark.parametrize(
    ("value", "refused"), [("abc", True), ("${KEY:-abc}", True), ("${AWS_KEY}", False)]
)
def test_a_recipe_may_name_a_variable_but_hold_no_credential(tmp_path, value, refused):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"storage:\n  secret_access_key: {value}\n")
    submission = Submission(arguments=("ingest", "--recipe", str(recipe)))
    if not refused:
        refuse_secrets(submission)
        return
    with pytest.raises(ConfigError, match=r"r\.yaml: storage\.secret_access_key") as caught:
        refuse_secrets(submission)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://[::1]:8265", True),
        ("http://localhost:8265", True),
        ("http://localhost.evil.example:8265", False),
        ("https://10.0.0.1", False),
        ("http://0.0.0.0:8265", False),
    ],
)
def test_loopback_is_known(address, expected):
    assert is_loopback(address) is expected


class _Dashboard(Answers):
    status = 200

    def do_GET(self) -> None:
        self.answer(type(self).status, "[]")


@pytest.fixture
def dashboard() -> Iterator[str]:
    with answering(_Dashboard) as address:
        yield address


def test_an_open_dashboard_elsewhere_is_refused(dashboard, monkeypatch):
    assert not asks_for_token(dashboard)
    monkeypatch.setattr("workflows.submit.is_loopback", lambda address: False)
    with pytest.raises(ConfigError, match="accepts jobs from anyone"):
        connect(dashboard)
    monkeypatch.setattr(_Dashboard, "status", 401)
    assert asks_for_token(dashboard)


def test_an_address_that_is_none_or_answers_not_is_named():
    with pytest.raises(ConfigError, match="not a dashboard address"):
        asks_for_token("ray://head:10001")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(SkysiftError, match=re.escape(address)):
            asks_for_token(address)


# ---------------------------------------------------------------- against a real head


@dataclass(frozen=True)
class _Head:
    port: int
    token: str
    folder: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cluster(self) -> str:
        return (self.folder / "ray_current_cluster").read_text().strip()

    def skysift(self, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "RAY_AUTH_TOKEN": token or self.token,
            "PYTHONPATH": str(REPOSITORY),
        }
        return subprocess.run(
            [sys.executable, "-m", "workflows.cli", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[_Head]:
    """A Ray head of its own, with dashboard and token."""
    port, agent_port = _free_port(), _free_port()
    token = "0123456789abcdef" * 4
    folder = Path(tempfile.mkdtemp(prefix="sj", dir="/tmp"))  # Ray's sockets want a short path
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port=0",
        "--node-ip-address=127.0.0.1", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent_port}",
        "--num-cpus=2", "--disable-usage-stats",
        f"--temp-dir={folder}",
    ]  # fmt: skip
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    environment.pop("RAY_ADDRESS", None)
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not _up(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.3)
        yield _Head(port, token, folder)
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _up(port: int) -> bool:
    try:
        return asks_for_token(f"http://127.0.0.1:{port}")
    except SkysiftError:
        return False


def test_a_job_runs_with_its_recipe_and_gives_log_and_exit_code(head, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: ${WORLD}\ngrid:\n  tile_px: 77\n")
    target = ["--address", head.address]
    shown = ["--", "recipe", "show", "-r", str(recipe)]
    done = head.skysift("submit", *target, "--env", "WORLD=here", *shown)
    assert done.returncode == 0, done.stderr
    assert "name: here" in done.stdout
    assert "tile_px: 77" in done.stdout
    failed = head.skysift("submit", *target, *shown)
    assert failed.returncode == 2
    assert "uses ${WORLD}, which is not set" in failed.stdout
    job_id = re.search(r"skysift-\w+", done.stderr).group()
    listed = head.skysift("jobs", "list", *target)
    assert re.search(rf"{job_id}\s+SUCCEEDED\s+recipe show", listed.stdout), listed.stdout
    assert "name: here" in head.skysift("jobs", "logs", *target, job_id).stdout


def test_the_doctor_looks_at_each_node_of_the_cluster(head, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    wants = {"output": str(tmp_path / "run"), "device": "gpu", "workers": 4}
    settings = {"cluster": {"address": head.cluster, "dashboard": head.address}, "training": wants}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(settings))
    done = head.skysift("doctor", "--json", "-r", str(recipe))
    found = {each["what"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["Ray"]["verdict"] == "ok", found
    assert "1 nodes at" in found["Ray"]["found"]
    (node,) = [found[what] for what in found if what.startswith("node ")]
    assert "releases" not in node["found"] or "as here" in node["found"], node
    assert found["dashboard"]["verdict"] == "ok"
    assert found["training"]["verdict"] == "broken"
    assert "room for 0" in found["training"]["found"]
    assert done.returncode == 1


def test_a_wrong_token_and_an_unknown_job_are_one_line(head):
    wrong = head.skysift("jobs", "list", "--address", head.address, token="f" * 64)
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert "RAY_AUTH_TOKEN" in wrong.stderr
    unknown = head.skysift("jobs", "stop", "--address", head.address, "skysift-0")
    assert unknown.returncode == 1
    assert "knows no job 'skysift-0'" in unknown.stderr


class _CuttingProxy:
    """A TCP proxy that cuts the first connections that have carried a log for a while."""

    def __init__(self, port: int, cuts: int) -> None:
        self._target, self.cuts = port, cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if b"line 1\n" in data and self.cuts:
                    self.cuts -= 1
                    break
                sink.sendall(data)
        except OSError:
            pass  # the other direction closed both ends
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
            end.close()


def test_a_dropped_connection_loses_and_repeats_nothing(head):
    from ray.job_submission import JobSubmissionClient

    proxy = _CuttingProxy(head.port, cuts=2)
    headers = {"Authorization": f"Bearer {head.token}"}
    client = JobSubmissionClient(f"http://127.0.0.1:{proxy.port}", headers=headers)
    program = "import time\nfor n in range(4): print('line', n, flush=True); time.sleep(0.7)"
    job_id = client.submit_job(entrypoint=f'{sys.executable} -c "{program}"')
    log: list[str] = []
    result = follow(client, job_id, log.append, reconnect_s=(0.2,))
    proxy.close()
    assert proxy.cuts == 0
    lines = [line for line in "".join(log).splitlines() if line.startswith("line")]
    assert lines == ["line 0", "line 1", "line 2", "line 3"]
    assert (result.status, result.exit_code) == ("SUCCEEDED", 0)
    with pytest.raises(NotFoundError):
        job_result(client, "skysift-0")
