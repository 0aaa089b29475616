"""Pages in a real browser: no script runs, no request leaves, nothing is wider than a phone, arrows sort."""

import functools
import html
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hf_era.reporting.html.comparison import render_comparison
from hf_era.reporting.html.report import render_report

from ..samples import comparison, hostile_run, run_result

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium in PATH"),
]
# Chromium's window is at least 500 pixels wide, a frame can be narrower. A `srcdoc` frame may write to its parent.
FRAME = '<!DOCTYPE html><body><iframe width="{width}" height="800" style="border: 0" srcdoc="{page}"></iframe></body>'
MEASURE = """<script>
const root = document.documentElement;
document.querySelectorAll("details").forEach(part => part.open = true);
parent.document.documentElement.setAttribute("data-measured", (%s).join(" "));
</script>"""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--dump-dom", "--virtual-time-budget=2000",
)  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """Loads a page in a new profile and returns the document as it stands in the end."""

    def dom(text):
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run(
            [*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True, encoding="utf-8"
        )
        return done.stdout

    return dom


@pytest.fixture
def visitors():
    """A server on this machine: its address, and the paths that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def title_of(document):
    return re.search(r"<title>(.*?)</title>", document, re.DOTALL).group(1)


def without_policy(text):
    changed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert changed != text
    return changed


PAGES = {
    "report": functools.cache(lambda: render_report(run_result())),
    "hostile": functools.cache(lambda: render_report(hostile_run())),
    "comparison": functools.cache(lambda: render_comparison(comparison())),
    "hostile comparison": functools.cache(lambda: render_comparison([hostile_run(), run_result()])),
}


@pytest.mark.parametrize("name", ["hostile", "hostile comparison"])
def test_no_script_runs(load, name):
    text = PAGES[name]()
    assert title_of(load(text)) != "pwned"
    # Escaping alone holds too, without the page's policy.
    assert title_of(load(without_policy(text))) != "pwned"


def test_the_policy_holds_even_where_escaping_fails(load, visitors):
    address, asked = visitors
    planted = '<script>document.title="pwned"</script>'
    planted += f'<img src="{address}/image"><link rel="stylesheet" href="{address}/style">'
    text = PAGES["report"]().replace("</main>", f"{planted}</main>")
    assert title_of(load(text)) == "posttrain_fullseq"
    assert asked == []
    # Without the policy the same page does both, so the checks can fail.
    assert title_of(load(without_policy(text))) == "pwned"
    assert sorted(asked) == ["/image", "/style"]


def test_no_request_leaves(load, visitors):
    address, asked = visitors
    attack = f'"><img src="{address}/a"><svg><image href="{address}/b"/></svg><style>@import url({address}/c)</style>'
    load(without_policy(render_report(run_result(name=attack, git_revision=attack))))
    assert asked == []


def measured(load, page, script, width=360):
    """What a script in the page measures, with everything unfolded, in a frame of so many pixels."""
    text = without_policy(page).replace("</body>", f"{MEASURE % script}</body>")
    document = load(FRAME.format(width=width, page=html.escape(text)))
    return [float(value) for value in re.search(r'data-measured="([-\d. ]+)"', document).group(1).split()]


def widths_of(load, page, planted=""):
    """Of a phone's window, and of what is in it."""
    sizes = "[innerWidth, root.scrollWidth, document.body.scrollWidth]"
    return measured(load, page.replace("</body>", f"{planted}</body>"), sizes)


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_text_in_plots_can_be_read_on_a_phone(load, name):
    heights = measured(
        load,
        PAGES[name](),
        """[...document.querySelectorAll("figure svg text")].map(
        part => parseFloat(getComputedStyle(part).fontSize) * Math.hypot(part.getScreenCTM().a, part.getScreenCTM().b))""",
    )
    assert len(heights) > 50
    assert min(heights) >= 10  # CSS pixels


def test_a_checked_arrow_puts_the_rows_in_order(load):
    script = """(() => {
        const table = document.querySelector(".sortable");
        table.querySelector(".down-2").click();
        const rows = [...table.querySelectorAll("tbody tr")];
        rows.sort((one, other) => one.getBoundingClientRect().top - other.getBoundingClientRect().top);
        return rows.map(row => parseFloat(row.children[2].textContent));
    })()"""
    shown = measured(load, PAGES["comparison"](), script, 1400)
    assert len(set(shown)) > 2
    assert shown == sorted(shown, reverse=True)
    assert measured(load, PAGES["comparison"](), script.replace("down-2", "up-2"), 1400) == sorted(shown)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_not_wider_than_a_phone(load, name):
    assert widths_of(load, PAGES[name]()) == [360, 360, 360]


def test_the_measurement_notices_what_is_too_wide(load):
    wide = '<div style="width: 700px; max-width: none">x</div>'
    assert widths_of(load, PAGES["report"](), wide)[:2] == [360, 700]
