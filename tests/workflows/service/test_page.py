"""The page of the map as three files."""

import re
from pathlib import Path

import pytest

from workflows.service.app import WEB
from workflows.service.page import joined, map_page


def _write(folder: Path, **modules: str) -> None:
    for name, text in modules.items():
        (folder / f"{name}.js").write_text(text)


def test_modules_become_constants_after_those_that_they_import(tmp_path):
    _write(
        tmp_path,
        main='import * as low from "./low.js";\nimport { a as b } from "./low.js";\nb(low);\n',
        low="export const a = 1;\nexport async function f() {}\nexport class C {}\n",
    )
    low, main = joined(tmp_path, "main.js", set())
    assert low.startswith("const page_low = (() => {")
    assert low.endswith("return { a, f, C }; })();")
    assert "export" not in low
    assert "const low = page_low;\nconst { a: b } = page_low;\nb(low);" in main


@pytest.mark.parametrize("line", ['import x from "./x.js";', "export default 1;", "export { a };"])
def test_other_imports_and_exports_are_refused(tmp_path, line):
    _write(tmp_path, main=f"{line}\n")
    with pytest.raises(ValueError, match=f"main.js cannot be joined .*{re.escape(line[:12])}"):
        list(joined(tmp_path, "main.js", set()))


def test_the_script_has_every_module_once_and_asks_before_the_library():
    script = map_page(WEB).script
    modules = {file.stem for file in WEB.glob("*.js")} - {"docs"}
    found = re.findall(r"^const page_(\w+) =", script, re.MULTILINE)
    assert sorted(found) == sorted(modules)
    assert (
        script.index("const page_about")
        < script.index("MapLibre GL JS")
        < script.index("const page_main")
    )
