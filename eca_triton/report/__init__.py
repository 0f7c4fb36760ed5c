"""What becomes of each ECA-like site of a model, and what that is predicted to be worth.

report = eca_triton.explain(model, images)
print(report)
report.save_html("report.html")
"""

from __future__ import annotations

from .check import assert_lowered
from .gather import explain
from .last import LastReport, last_report
from .report import Report
from .text import write

__all__ = ["LastReport", "Report", "assert_lowered", "explain", "last_report", "write"]
