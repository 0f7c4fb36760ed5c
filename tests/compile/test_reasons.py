"""Every reason code is documented once, at an anchor of its own, and the documentation invents none."""

from __future__ import annotations

import re

from paths import ROOT

from eca_triton.compile import reasons
from eca_triton.compile.settings import PLANS

PAGE = (ROOT / "docs" / "reasons.md").read_text()


def test_every_code_has_its_line_and_its_entry() -> None:
    codes = {
        value for name, value in vars(reasons).items() if name.isupper() and str(value).startswith("ECA")
    }
    assert codes == reasons.REASONS.keys()
    entries = re.findall(r'^\| <a id="(\w+)"></a>(\w+) \|', PAGE, re.MULTILINE)
    assert [code for _, code in entries] == sorted(codes)
    assert all(anchor == code.lower() for anchor, code in entries)


def test_every_value_of_the_option_is_explained() -> None:
    choosing = PAGE[PAGE.index("## Choosing a plan") : PAGE.index("## Strict")]
    assert all(f"`{plan}`" in choosing for plan in PLANS)


def test_what_strict_raises_for_is_what_the_page_says() -> None:
    strict = PAGE[PAGE.index("## Strict") : PAGE.index("## Errors")]
    raised, kept = strict.split("It does not raise")
    for code in reasons.UNEXPLAINED_BY_COST:
        assert code in raised or code.startswith("ECA1")
        assert code not in kept.split("But")[0]
