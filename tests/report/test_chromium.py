"""The page in a real browser: no error, no sideways scrolling, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mtlcore.report import write_report
from tests.report.run_folder import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--allow-file-access-from-files",
)
WIDTHS = (360, 400, 768, 1400)
# A page of our own around the report: the report itself runs no script.
HARNESS = """<!DOCTYPE html><body>%s<pre id="found"></pre><script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument;
    return {
      width: frame.clientWidth,
      needs: page.documentElement.scrollWidth,
      ground: getComputedStyle(page.body).backgroundColor,
      charts: [...page.querySelectorAll("svg")].every(svg => svg.clientWidth > 0),
      sections: page.querySelectorAll("main section").length,
    };
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def open_in_browser(folder: Path, page: Path, *flags: str) -> tuple[list[dict[str, object]], str]:
    """What the harness measured at each width, and the browser's log."""
    frames = "".join(
        f'<iframe src="{page.as_uri()}" style="width:{w}px;height:900px;border:0"></iframe>'
        for w in WIDTHS
    )
    harness = folder / "harness.html"
    harness.write_text(HARNESS % frames, encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            *FLAGS,
            *flags,
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            harness.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout)
    assert found is not None, done.stderr
    return json.loads(found[1]), done.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = ["sentiment", "a_task_with_a_rather_long_name_" * 3, *(f"t{i}" for i in range(10))]
    return write_report(write_run(tmp_path_factory.mktemp("chromium") / "run", tasks))


def test_the_page_opens_without_errors_and_never_scrolls_sideways(
    page: Path, tmp_path: Path
) -> None:
    found, log = open_in_browser(tmp_path, page)
    assert "CONSOLE" not in log, log
    assert [one["width"] for one in found] == list(WIDTHS)
    for one in found:
        assert one["needs"] == one["width"], one
        assert one["charts"]
        assert one["sections"] == 18


def test_the_page_is_dark_where_dark_is_preferred(page: Path, tmp_path: Path) -> None:
    light, _ = open_in_browser(tmp_path, page)
    dark, _ = open_in_browser(tmp_path, page, "--blink-settings=preferredColorScheme=0")
    assert light[0]["ground"] == "rgb(245, 246, 248)"
    assert dark[0]["ground"] == "rgb(18, 21, 25)"


def printed(folder: Path, page: Path, *flags: str) -> list[list[bytes]]:
    """Every printed page as rows of grey pixels, 8 to a centimetre."""
    folder.mkdir()
    pdf = folder / "page.pdf"
    profile = f"--user-data-dir={folder / 'profile'}"
    options = (profile, "--no-pdf-header-footer", f"--print-to-pdf={pdf}")
    for command in (
        [str(CHROMIUM), *FLAGS, *flags, *options, page.as_uri()],
        ["pdftoppm", "-gray", "-r", "20", pdf, folder / "page"],
    ):
        subprocess.run(command, capture_output=True, timeout=120, check=True)
    pages = []
    for path in sorted(folder.glob("page-*.pgm")):
        _, size, _, pixels = path.read_bytes().split(b"\n", 3)
        width, height = map(int, size.split())
        pages.append([pixels[row * width : (row + 1) * width] for row in range(height)])
    return pages


@pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="poppler-utils is not installed")
def test_the_page_prints_within_its_margins_on_white_paper(page: Path, tmp_path: Path) -> None:
    pages = printed(tmp_path / "light", page)
    assert 5 < len(pages) < 40
    for rows in pages:
        assert any(min(row) < 200 for row in rows), "an empty page"
        sides = b"".join(row[:8] + row[-8:] for row in rows)
        assert set(sides + b"".join([*rows[:8], *rows[-8:]])) == {255}
    # a browser makes all smaller if a table or chart is wider than the paper
    boxes = subprocess.run(
        ["pdftotext", "-bbox", tmp_path / "light" / "page.pdf", "-"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    edges = re.findall(r'<word xMin="[\d.]+" yMin="([\d.]+)" xMax="[\d.]+" yMax="([\d.]+)"', boxes)
    assert max(float(bottom) - float(top) for top, bottom in edges) > 20, "points of the heading"
    dark = printed(tmp_path / "dark", page, "--blink-settings=preferredColorScheme=0")
    assert dark == pages


def test_hostile_text_runs_nothing_in_the_browser(tmp_path: Path) -> None:
    hostile = """<script>alert(1)</script>"><img src=x onerror=alert(1)></style><svg onload=a()>"""
    run = write_run(tmp_path / "run", [hostile, "' onfocus='alert(1)' autofocus='"])
    for path in (run / "review.jsonl", run / "result.json", run / "audits.jsonl"):
        text = path.read_text(encoding="utf-8")
        for word in ("positive", "Elastic weights", "answers change"):
            text = text.replace(word, json.dumps(hostile)[1:-1])
        path.write_text(text, encoding="utf-8")
    found, log = open_in_browser(tmp_path, write_report(run))
    # What the page's own policy stops is logged too: nothing was tried.
    assert "CONSOLE" not in log, log
    assert len(found) == len(WIDTHS)
