"""The report in a real browser: silent console, nothing requested, nothing wider than a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import analysis_data
import comparison_data
import pytest
import report_data
import sweep_data

from pkt.report import analysis_page, sweep_page
from pkt.report.comparison_page import page
from pkt.report.frontier import pictures
from pkt.report.html import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
)  # fmt: skip
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
PROBE = """<!doctype html><title>probe</title><iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<pre id="found"></pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const root = frame.contentDocument.documentElement, view = frame.contentWindow;
  const rules = [...frame.contentDocument.styleSheets].flatMap((sheet) => [...sheet.cssRules]);
  if ({print}) for (const rule of rules) if (rule.media?.mediaText === "print") rule.media.mediaText = "all";
  const tall = (e) => e.getBoundingClientRect().height;
  const folded = [...root.querySelectorAll("details")].filter((e) => tall(e) < tall(e.querySelector("summary")) + 10);
  for (const part of root.querySelectorAll("details")) part.open = true;
  const outside = [...root.querySelectorAll("body *")].filter(
    (e) => !e.closest(".box") && e.getBoundingClientRect().right > view.innerWidth + 0.5);
  document.querySelector("#found").textContent = JSON.stringify({{
    width: view.innerWidth, scroll: root.scrollWidth, outside: outside.map((e) => e.tagName),
    requests: view.performance.getEntriesByType("resource").map((e) => e.name),
    figures: [...root.querySelectorAll("figure svg")].map((e) => Math.round(e.getBoundingClientRect().width)),
    pictures: root.querySelectorAll("figure").length,
    ink: view.getComputedStyle(root.querySelector("svg text")).fill,
    paper: view.getComputedStyle(root.querySelector("body")).backgroundColor,
    details: root.querySelectorAll("details").length, folded: folded.length,
    small: [...root.querySelectorAll("svg text")].filter((e) => e.getBoundingClientRect().height < 9).map((e) => e.textContent),
    captions: [...root.querySelectorAll("figcaption")].map((e) => [...e.querySelectorAll("b")].map((b) => b.textContent).join(" ")),
    summary: root.querySelector("header .summary, header .outcome")?.textContent ?? "",
  }});
}};
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")


def open_in_browser(
    folder: Path, page: str, width: int = 400, *flags: str, as_printed: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """What the page measures in a frame of that width, and the lines of the console.

    Args:
        as_printed: with the style that it has on paper.
    """
    path = folder / "probe.html"
    probe = PROBE.format(width=width, page=html.escape(page), print=json.dumps(as_printed))
    path.write_text(probe, encoding="utf-8")
    done = subprocess.run(
        [str(CHROMIUM), *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    assert found[1], "the page did not load in time"
    return json.loads(html.unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [400, 1000])
@pytest.mark.parametrize("make", [report_data.nano, report_data.large])
def test_page_is_silent_asks_for_nothing_and_fits(tmp_path: Path, make: Any, width: int) -> None:
    page = render(report_data.write(tmp_path / "run", make()))
    bare = POLICY.sub("", page)  # so that the policy hides no request
    assert bare != page
    found, console = open_in_browser(tmp_path, bare, width)
    assert console == []
    assert found["requests"] == []
    assert found["width"] == width
    assert found["scroll"] <= width
    assert found["outside"] == []
    assert len(found["figures"]) == 5
    assert min(found["figures"]) > 300


@pytest.mark.parametrize("width", [400, 1000])
@pytest.mark.parametrize(("make", "num_figures"), [(report_data.nano, 9), (report_data.certified_only, 4)])
def test_page_with_a_certificate_is_silent_and_fits(tmp_path: Path, make: Any, num_figures: int, width: int) -> None:
    certificate = report_data.certificate()
    certificate.update(reason="r" * 300, rule="s" * 300, preliminary=True)
    certificate["arms"][0].update(what="w" * 300, arm="a" * 100)
    certificate["comparisons"][0]["arm"] = certificate["guards"][0]["name"] = certificate["items"]["tier"] = "n" * 300
    folder = report_data.certify(report_data.write(tmp_path / "run", make()), certificate)
    bare = POLICY.sub("", render(folder))
    found, console = open_in_browser(tmp_path, bare, width)
    assert console == []
    assert found["requests"] == []
    assert found["scroll"] <= width
    assert found["outside"] == []
    assert len(found["figures"]) == num_figures
    assert min(found["figures"]) > 300


def test_policy_breaks_nothing(tmp_path: Path) -> None:
    page = render(report_data.write(tmp_path / "run", report_data.nano()))
    found, console = open_in_browser(tmp_path, page)
    assert console == []
    assert len(found["figures"]) == 5


def test_long_names_do_not_widen_the_page(tmp_path: Path) -> None:
    summary = report_data.nano()
    summary["name"] = summary["task"] = summary["target"]["name"] = "x" * 300
    summary["warnings"] = ["y" * 300]
    summary["perplexity"]["text"] = "z" * 300
    summary["export"]["dtype"] = "w" * 300
    found, _ = open_in_browser(tmp_path, render(report_data.write(tmp_path / "run", summary)))
    assert found["scroll"] <= 400
    assert found["outside"] == []


@pytest.mark.parametrize(("scheme", "ink"), [("1", "rgb(26, 32, 39)"), ("0", "rgb(228, 232, 237)")])
def test_figures_follow_light_and_dark(tmp_path: Path, scheme: str, ink: str) -> None:
    page = render(report_data.write(tmp_path / "run", report_data.nano()))
    found, _ = open_in_browser(tmp_path, page, 400, f"--blink-settings=preferredColorScheme={scheme}")
    assert found["ink"] == ink


def test_the_probe_sees_what_it_looks_for(tmp_path: Path) -> None:
    bad = (
        "<!doctype html><script>console.error('seen')</script><img src='http://example.invalid/x.png'><svg><text>a</text>"
        "</svg><p style='width: 900px'>wide</p>"
    )
    found, console = open_in_browser(tmp_path, bad)
    assert any("seen" in line for line in console)
    assert found["requests"] == ["http://example.invalid/x.png"]
    assert found["scroll"] >= 900
    assert "P" in found["outside"]


@pytest.mark.parametrize(("width", "scheme"), [(400, "1"), (1000, "1"), (1000, "0")])
def test_comparison_is_silent_asks_for_nothing_and_fits(tmp_path: Path, width: int, scheme: str) -> None:
    content = comparison_data.frontier()
    content["runs"][0].update(
        run="r" * 200, folder="f" * 300, method="m" * 60, verdict=None, state="unfinished: " + "s" * 200
    )
    whole = page(content, pictures(content))
    bare = POLICY.sub("", whole)
    assert bare != whole
    found, console = open_in_browser(tmp_path, bare, width, f"--blink-settings=preferredColorScheme={scheme}")
    assert console == []
    assert found["requests"] == []
    assert found["scroll"] <= width
    assert found["outside"] == []
    assert len(found["figures"]) == 3
    assert min(found["figures"]) > 300
    assert found["ink"] == {"1": "rgb(26, 32, 39)", "0": "rgb(228, 232, 237)"}[scheme]


def run_page(folder: Path) -> str:
    return render(report_data.write(folder, report_data.nano()))


def certificate_page(folder: Path) -> str:
    return render(report_data.certify(report_data.write(folder, report_data.nano()), report_data.certificate()))


def comparison_page(folder: Path) -> str:
    content = comparison_data.frontier()
    return page(content, pictures(content))


def analysis(folder: Path) -> str:
    return analysis_page.page(analysis_data.found())


def sweep(folder: Path) -> str:
    return sweep_page.page(*sweep_data.make({"method.steps": [2, 4, 8], "method.bias": [False, True]}, failed=(1,)))


PAGES = {
    "run": run_page,
    "certificate": certificate_page,
    "comparison": comparison_page,
    "analysis": analysis,
    "sweep": sweep,
}
"""Every kind of page that we write: folder -> text. A new kind of page is a line here."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis_page.PICTURES, "get", lambda name: analysis_data.figures)
        return {name: make(tmp_path_factory.mktemp(name)) for name, make in PAGES.items()}


@pytest.mark.parametrize("name", PAGES)
def test_every_page_on_a_phone_in_the_light(tmp_path: Path, texts: dict[str, str], name: str) -> None:
    bare = POLICY.sub("", texts[name])
    assert bare != texts[name]
    found, console = open_in_browser(tmp_path, bare, 360, "--blink-settings=preferredColorScheme=1")
    assert console == []
    assert found["requests"] == []
    assert (found["width"], found["outside"]) == (360, [])
    assert found["scroll"] <= 360
    assert found["details"] == found["folded"] > 0
    assert found["small"] == []
    assert found["captions"] == ["Shown: How to read it: By chance:"] * found["pictures"]
    assert len(found["summary"]) > 40
    assert (found["ink"], found["paper"]) == ("rgb(26, 32, 39)", "rgb(255, 255, 255)")


@pytest.mark.parametrize("name", PAGES)
def test_every_page_in_the_dark_with_its_policy(tmp_path: Path, texts: dict[str, str], name: str) -> None:
    found, console = open_in_browser(tmp_path, texts[name], 1000, "--blink-settings=preferredColorScheme=0")
    assert console == []
    assert found["outside"] == []
    assert (found["ink"], found["paper"]) == ("rgb(228, 232, 237)", "rgb(20, 24, 29)")


@pytest.mark.parametrize("name", PAGES)
def test_every_page_on_paper_is_light_and_has_nothing_folded(tmp_path: Path, texts: dict[str, str], name: str) -> None:
    dark = "--blink-settings=preferredColorScheme=0"
    found, console = open_in_browser(tmp_path, POLICY.sub("", texts[name]), 1032, dark, as_printed=True)
    assert console == []
    assert (found["ink"], found["paper"]) == ("rgb(0, 0, 0)", "rgb(255, 255, 255)")
    assert found["details"] > found["folded"] == 0
    assert found["scroll"] <= 1032
