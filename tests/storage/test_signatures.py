"""What is shown and written of an address has no signature, and keeps the rest."""

import pickle

import pytest

from storage.errors import ConfigError, NotFoundError, SkysiftError
from storage.location import Location
from storage.signatures import without_signatures
from tests.support.signed_addresses import SIGNED


@pytest.mark.parametrize("address", SIGNED)
def test_a_signed_address_is_that_of_the_file(address: str) -> None:
    assert without_signatures(address) == "https://h/a.tif"
    assert str(Location(address)) == "https://h/a.tif"
    assert Location(address).uri == address, "readers need the signature"
    assert "HUSH" not in repr(Location(address))


@pytest.mark.parametrize("address", SIGNED)
@pytest.mark.parametrize(
    "text", ["{} is gone", "'/vsicurl/{}' not found", "({}), {}; check", '"{}".']
)
def test_a_text_keeps_all_but_the_signature(address: str, text: str) -> None:
    assert without_signatures(text.format(address, address)) == text.format(
        *["https://h/a.tif"] * 2
    )


@pytest.mark.parametrize(
    "text",
    [
        "https://h/a.tif?versionId=3&e=5&st=1",
        "https://h/get?key=scenes/B04.tif",
        "https://h/a.tif?sig=",
        "what? (sig=natures) are a@b://x",
        "./what?.tif",
        "s3://bucket/me@here/a#1.tif",
    ],
)
def test_what_is_no_signature_stays(text: str) -> None:
    assert without_signatures(text) == text


def test_other_parameters_stay_beside_a_signature() -> None:
    assert without_signatures("https://h/a?id=1&sig=x&se=2&v=2") == "https://h/a?id=1&v=2"
    inner = "/vsicurl?max=1&url=https%3A%2F%2Fh%2Fa.tif%3Fsig%3DHUSH"
    assert without_signatures(inner) == "/vsicurl?max=1&url=https%3A%2F%2Fh%2Fa.tif"


@pytest.mark.parametrize("kind", [SkysiftError, ConfigError, NotFoundError])
def test_no_error_of_the_project_tells_a_signature(kind: type[SkysiftError]) -> None:
    error = kind(f"{SIGNED[0]} cannot be read")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "https://h/a.tif cannot be read"
