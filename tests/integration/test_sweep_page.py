"""The page of a sweep in a real browser: silent console, nothing requested, nothing wider than a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
import sweep_data
from test_report_chromium import CHROMIUM, POLICY, open_in_browser

from pkt.report.sweep_page import page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")


@pytest.mark.parametrize(("width", "scheme"), [(400, "1"), (1000, "0")])
def test_page_is_silent_asks_for_nothing_and_fits(tmp_path: Path, width: int, scheme: str) -> None:
    over = {"method.steps": [2, 4, 8], "source.name": ["nano/source", "nano/" + "x" * 60]}
    sweep, costs = sweep_data.make(over, failed=(1,), question="q" * 200)
    sweep["points"][3]["source_parameters"] = 9_000_000
    whole = page(sweep, costs)
    bare = POLICY.sub("", whole)  # so that the policy hides no request
    assert bare != whole
    found, console = open_in_browser(tmp_path, bare, width, f"--blink-settings=preferredColorScheme={scheme}")
    assert console == []
    assert found["requests"] == []
    assert found["scroll"] <= width
    assert found["outside"] == []
    assert len(found["figures"]) == 5
