"""The claims of `ling report` as a screen of a real `ling serve --evidence`."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import expect

from lingflash.evals.report import CLAIMS

pytestmark = pytest.mark.slow


def test_evidence_then_every_claim_stands_beside_what_was_measured_or_says_that_nothing_was(
    ling_serve, open_tab
):
    told = httpx.get(ling_serve + "/evidence").json()
    tab = open_tab(ling_serve)
    page = tab.open("evidence")
    claims, records = (
        page.get_by_role("region", name=name, exact=True).locator("tbody tr")
        for name in ("Claims", "Records")
    )
    rows = sum(max(1, len(each["here"])) for each in told["claims"])
    expect(claims).to_have_count(rows)
    expect(records).to_have_count(len(told["records"]))
    for claim in CLAIMS:
        its_own = page.get_by_role("cell", name=claim.what, exact=True)
        expect(claims.filter(has=its_own)).to_contain_text(claim.announced)
    open_claims = [each for each in told["claims"] if not each["here"]]
    assert open_claims
    expect(claims.filter(has_text="not measured")).to_have_count(len(open_claims))
    measured = next(each for each in told["claims"] if each["here"])
    expect(claims.filter(has_text=measured["claim"]).first).to_contain_text(
        measured["here"][0]["text"]
    )
