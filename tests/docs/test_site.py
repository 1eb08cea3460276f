"""The site builds without a broken link, works without anyone else's server, and can be used by all."""

import functools
import http.server
import importlib.util
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("zensical")

ROOT = Path(__file__).parents[2]
# A page of each kind: home, tutorial, long tables, help texts, recipes, API.
KINDS = ["", "tutorials/", "results/", "attention/", "reference/cli/compare/"]
KINDS += ["reference/recipes/", "reference/api/settings/"]


def _build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs/build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = _build_script()
    script.BUILD = tmp_path_factory.mktemp("build")
    assert script.build() == 0
    return script.BUILD / "site"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_every_reference_of_every_page_is_there(site: Path) -> None:
    pages = {file.relative_to(site): file.read_text() for file in site.rglob("index.html")}
    pages = {page: text for page, text in pages.items() if "md-content" in text}
    assert len(pages) > 60
    ids = {page: set(re.findall(r'\bid="?([^"\s>]+)', text)) for page, text in pages.items()}
    for page, text in pages.items():
        for reference in re.findall(r'(?:href|src)="([^"]+)"', text):
            if urlsplit(reference).scheme:
                continue
            found = urlsplit(urljoin(f"/{page}", reference.replace("&amp;", "&")))
            target = Path(unquote(found.path).lstrip("/"))
            target = target / "index.html" if (site / target).is_dir() else target
            assert (site / target).is_file(), f"{page}: {reference}"
            if found.fragment and target in ids and not found.fragment.startswith("__"):
                assert unquote(found.fragment) in ids[target], f"{page}: {reference}"


def test_the_site_calls_nobody_and_finds_what_is_searched(browser: Any, address: str) -> None:
    page = browser.new_page()
    called: list[str] = []
    page.on("request", lambda request: called.append(request.url))
    for kind in KINDS:
        page.goto(address + kind, wait_until="networkidle")
        assert page.locator("h1").first.is_visible()
    page.keyboard.press("Control+k")
    page.keyboard.type("kernel_sizes", delay=20)
    page.get_by_text("3557").first.wait_for(timeout=20_000)
    assert not [url for url in called if not url.startswith((address, "data:", "blob:"))]
    page.close()


@pytest.mark.parametrize("width", [1300, 390])
def test_pages_can_be_used_by_all(browser: Any, address: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page(viewport={"width": width, "height": 900})
    for kind in KINDS:
        page.goto(address + kind, wait_until="networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, kind
        faults = [
            f"{kind or 'home'}: {fault['id']}: {fault['nodes'][0]['html'][:200]}"
            for fault in axe.run(page).response["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
        assert not faults, "\n".join(faults)
    page.close()
