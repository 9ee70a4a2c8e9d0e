"""The map of imported embeddings: hits without pictures, and no way to ask with one."""

from pathlib import Path

from playwright.sync_api import Browser, expect

from pipeline.importing import ImportSpec, import_embeddings, plan_import
from pipeline.indexing import build_index
from tests.support.embeddings import clay_v0, make_chips
from tests.support.map_page import Watched
from tests.support.service_world import serving
from workflows.service.app import create_app
from workflows.service.backend import IndexBackend
from workflows.service.settings import BackendConfig, Limits


def test_a_place_of_imported_embeddings_gives_hits_on_the_map(
    tmp_path: Path, browser: Browser, ray_session: None
):
    chips = make_chips(30, 768)
    spec = ImportSpec(source=str(clay_v0(tmp_path, chips)), archive_uri=str(tmp_path / "archive"))
    import_embeddings(plan_import(spec))
    build_index(spec.archive_uri, str(tmp_path / "index"))
    backend = IndexBackend(BackendConfig(index_uri=str(tmp_path / "index")))
    with serving(create_app(backend, limits=Limits(rate_per_s=0))) as address:
        watched = Watched(browser.new_page())
        page = watched.open(address).page
        expect(page.locator("#drop")).to_contain_text("A saved search: drop it here")
        expect(page.locator("body")).to_contain_text("which come without pixels")
        lon, lat = chips.centres[4]
        page.get_by_label("Longitude").fill(str(lon))
        page.get_by_label("Latitude").fill(str(lat))
        page.get_by_role("button", name="Find").click()
        watched.found(24)
        expect(page.locator("body")).to_contain_text("24 hits like the tile at")
        assert watched.said == []
        page.close()
