"""Install requirements into a virtual environment by uv, or by pip where uv cannot be used.

    python3.11 .ci/install.py .venv -c constraints.txt torch -e '.[dev]'

The environment is made where it is missing. uv takes less than half of pip's time, but it does not
read pip's configuration: a machine whose index, folder of wheels, constraints or certificate are
set for pip would install other builds, or none. So the settings of ``pip config list`` (files and
``PIP_`` variables) are passed on. Where a setting has no translation here, pip installs.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

# Settings of pip -> the variable of uv, and the character between several values.
_PASSED = {
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "proxy": ("ALL_PROXY", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
}
# Settings that do not change which files are installed.
_HARMLESS = frozenset(
    {
        "break-system-packages",
        "cache-dir",
        "config-file",
        "disable-pip-version-check",
        "no-cache-dir",
        "no-color",
    }
    | {"no-input", "no-warn-script-location", "progress-bar", "quiet", "require-virtualenv"}
    | {"retries", "root-user-action", "verbose"}
)
# The constraints are arguments: uv would read its variable only where no argument gives any.
_CONSTRAINT = "constraint"


class CannotTranslateError(Exception):
    """A setting of pip has no translation."""


def pip_settings(listing: str) -> dict[str, str]:
    """Return the settings of ``pip install`` by name, from the text of ``pip config list``.

    As in pip, variables (the section ``:env:``) have precedence over the section ``install``, and
    that over ``global``. The sections of other commands are left out.
    """
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in sections:
            sections[section][name.replace("_", "-")] = str(ast.literal_eval(value))
    return {name: value for values in sections.values() for name, value in values.items()}


def uv_settings(settings: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Translate settings of pip into variables and arguments of uv.

    Raises
    ------
    CannotTranslateError
        A setting may change which files are installed, and has no translation.
    """
    variables: dict[str, str] = {}
    # pip takes the best version of all its indexes, whichever index it comes from.
    arguments = ["--index-strategy", "unsafe-best-match"]
    for name, value in settings.items():
        values = value.split()
        if name in _PASSED:
            variable, separator = _PASSED[name]
            variables[variable] = separator.join(values)
        elif name == _CONSTRAINT:
            arguments += [part for file in values for part in ("-c", file)]
        elif name not in _HARMLESS:
            raise CannotTranslateError(f"pip's setting {name} is not passed on to uv")
    return variables, arguments


def main(arguments: Sequence[str]) -> int:
    """Install; return the exit status of the installer."""
    environment, requirements = Path(arguments[0]), list(arguments[1:])
    python = environment / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [str(python), "-m", "pip"]
    quiet_pip = [*pip, "install", "--quiet", "--disable-pip-version-check"]
    try:
        _install_by_uv(pip, quiet_pip, python, requirements)
    except CannotTranslateError as reason:
        print(f"install: {reason}; pip installs, which takes longer", file=sys.stderr)
        return subprocess.run([*quiet_pip, *requirements], check=False).returncode
    return 0


def _install_by_uv(
    pip: list[str], quiet_pip: list[str], python: Path, requirements: list[str]
) -> None:
    listing = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=True)
    variables, arguments = uv_settings(pip_settings(listing.stdout))
    constraints = [part for part in _constraints(requirements) for part in ("-c", part)]
    _run("uv cannot be installed", [*quiet_pip, *constraints, "uv"], {})
    command = [str(python.parent / "uv"), "pip", "install", "--quiet", "--python", str(python)]
    # Without bytecode every process of Ray would compile what it imports, all at the same time.
    _run("uv failed", [*command, "--compile-bytecode", *arguments, *requirements], variables)


def _constraints(requirements: list[str]) -> list[str]:
    return [file for flag, file in pairwise(requirements) if flag == "-c"]


def _run(failure: str, command: list[str], variables: Mapping[str, str]) -> None:
    """Run a command; the user's own variables of uv have precedence over the translated ones."""
    environment = {**variables, **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join((done.stderr.strip() or "it says nothing").split())
        raise CannotTranslateError(f"{failure} ({reason[:300]})")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
