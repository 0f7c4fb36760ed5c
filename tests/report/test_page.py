"""The page of a report: one file that refers to nothing, escapes every name, and fits narrow screens."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from reports import fixed

from eca_triton.compile.settings import Plan
from eca_triton.report import Report
from eca_triton.report.html import MEANINGS, PAGE
from eca_triton.report.predict import Band

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """
<!doctype html><meta charset="utf-8"><body><pre id="answer"></pre><script>
const widths = [1200, 400], answers = {};
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800; frame.src = "report.html";
  frame.onload = () => {
    const page = frame.contentDocument, count = (query) => page.querySelectorAll(query).length;
    answers[width] = {
      overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
      requests: frame.contentWindow.performance.getEntriesByType("resource").length,
      scripts: count("script"), strip: count(".strip > rect"), dots: count(".dot"),
      bars: count(".bars svg"), kernels: count("details"), fixes: count("article pre"),
      lowest: Math.min(...[...page.querySelectorAll("svg")].map((svg) => svg.clientHeight)),
    };
    if (Object.keys(answers).length === widths.length)
      document.getElementById("answer").textContent = JSON.stringify(answers);
  };
  document.body.append(frame);
}
</script></body>
"""


def without_target() -> Report:
    report = fixed()
    return replace(
        report, subject=replace(report.subject, target=None), comparison=None, plain=None, unmatched=()
    )


def test_the_page_refers_to_nothing_outside_itself_and_runs_nothing() -> None:
    page = fixed().to_html()
    assert not re.search(r"https?:|//[a-z]|\bsrc=|\bhref=\"(?!#)|@import|<script|\bon\w+=", page)
    assert set(re.findall(r"url\(([^)]*)\)", page)) == {"#hatch"}
    assert "default-src 'none'" in page


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_every_name_is_escaped(hostile: str) -> None:
    report = fixed(name=hostile, module=hostile)
    subject = replace(report.subject, model=hostile, inputs=(hostile,), dtype=hostile)
    page = replace(report, subject=subject, no_plain=hostile, graph_breaks=(hostile,)).to_html()
    assert hostile not in page
    assert page.count(html.escape(hostile).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")) >= 8


def test_it_shows_what_the_report_holds() -> None:
    page = fixed().to_html()
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    assert "2 of 3" in text
    assert "\N{MINUS SIGN}30.0 %" in text  # 2.0 to 1.4 GB
    assert "2.00 GB \N{RIGHTWARDS ARROW} 1.40 GB" in text
    assert re.search(r"What ECA costs, in bytes\s+\+40.0 %\s+\+100.0 % with stock", text)
    assert 'model = torch.compile(model, backend="eca_triton")' in text
    assert re.search(r"ECA106 .*neither sigmoid nor hard-sigmoid", text)
    assert "layer3.0.se at model.py:18" in text
    assert "head.eca (EcaModule)" in text
    assert "not measurements" in text


def test_every_plan_leads_to_what_it_means() -> None:
    assert MEANINGS.keys() == set(get_args(Plan))
    page = fixed().to_html()
    plans = {record.decision.plan for record in fixed().sites}
    ids, links = set(re.findall(r'id="(plan-\w+)"', page)), re.findall(r'href="#([^"]+)"', page)
    assert ids == {f"plan-{plan}" for plan in plans}
    assert set(links) == ids
    assert len(links) == len(plans) + len(fixed().sites), "the legend's, and one in each row"
    assert all(MEANINGS[plan] in page for plan in plans)


def test_a_dtype_is_said_once_and_the_axes_have_names() -> None:
    report = fixed()
    page = report.to_html()
    header = page[page.index('<p class="facts">') : page.index("</header>")]
    assert header.count(report.subject.dtype) == len(report.subject.inputs)
    assert ">TFLOP/s</text>" in page
    assert "FLOP per byte moved" in page
    other = replace(report, subject=replace(report.subject, dtype="float64")).to_html()
    assert "<span>weights float64</span>" in other


def test_what_is_not_known_is_not_drawn() -> None:
    page = without_target().to_html()
    assert 'class="strip"' in page
    assert "roofline" not in page.split("</style>")[1]
    assert "--target h200" in page
    assert "without ECA" not in fixed(plain=False).to_html().split("</style>")[1].replace(
        "network without ECA", ""
    )
    empty = replace(without_target(), sites=())
    assert "No ECA-like site was found" in empty.to_html()


def test_times_of_a_gpu_are_shown_only_if_there_are_any() -> None:
    from eca_triton.report.measure import Measurement

    measured = Measurement("A GPU", {"ours": Band(1.0, 1234.5, 2.0)}, rounds=20)
    assert "1,234.5" in replace(fixed(), measured=measured).to_html()
    wrong = Measurement("A GPU", {}, rounds=20, problem="our results are off by 3")
    assert "Nothing was timed: our results are off by 3" in replace(fixed(), measured=wrong).to_html()


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_in_both_schemes(scheme: str) -> None:
    """As WCAG 2.2 asks at level AA: 4.5 for text, 3 for what a picture is read by."""
    palettes = re.findall(r":root \{(.*?)\}", (PAGE / "style.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", palettes[["light", "dark"].index(scheme)]))
    for ground in ("paper", "panel"):
        assert all(contrast(colours[text], colours[ground]) >= 4.5 for text in ("ink", "quiet"))
    assert all(contrast(colours[mark], colours["paper"]) >= 3 for mark in (*get_args(Plan), "stock"))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser_it_is_complete_quiet_and_no_wider_than_its_window(tmp_path: Path) -> None:
    long = "stages." + "a_module_whose_name_does_not_end_" * 3
    fixed(name=long).save_html(tmp_path / "report.html")
    (tmp_path / "probe.html").write_text(PROBE)
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000",
        "--dump-dom", (tmp_path / "probe.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    answer = re.search(r'<pre id="answer">([^<]+)</pre>', done.stdout)
    assert answer is not None, done.stdout
    for found in json.loads(html.unescape(answer[1])).values():
        assert found.pop("lowest") > 5
        assert found == {
            "overflow": 0, "requests": 0, "scripts": 0, "strip": 3, "dots": 2, "bars": 6, "kernels": 3,
            "fixes": 1,
        }  # fmt: skip
