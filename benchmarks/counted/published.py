"""Images per second that the authors of ECA-Net measured, to stand beside counts; nothing of it is ours."""

from __future__ import annotations

from typing import NamedTuple

from ..shared.document import NOT_MEASURED, markdown

SOURCE = "table 3 of https://arxiv.org/abs/1910.03151v4"


class Rates(NamedTuple):
    """Images per second of a network by its attention; None where the paper has none."""

    plain: int
    se: int
    cbam: int | None
    eca: int


PUBLISHED = {
    "inference": {
        "eca_resnet50": Rates(1855, 1620, 1213, 1805),
        "eca_resnet101": Rates(1174, 1044, 635, 1089),
        "eca_resnet152": Rates(815, 761, None, 785),
        "eca_mobilenet_v2": Rates(2086, 2000, None, 2010),
    },
    "training": {
        "eca_resnet50": Rates(1024, 759, 472, 785),
        "eca_resnet101": Rates(386, 367, 270, 380),
        "eca_resnet152": Rates(281, 268, None, 279),
        "eca_mobilenet_v2": Rates(711, 671, None, 676),
    },
}
COLUMNS = ("network", "step", "plain", "SE", "CBAM", "ECA", "ECA over plain, time", "SE over ECA, time")


def table() -> str:
    """The figures, and the ratios of step times that they give."""
    cells = []
    for step, networks in PUBLISHED.items():
        for name, rates in networks.items():
            shown = [NOT_MEASURED if each is None else str(each) for each in rates]
            tax, over_eca = rates.plain / rates.eca - 1, rates.eca / rates.se - 1
            cells.append(
                [name, step, *shown, *(f"{each:+.1%}".replace("%", " %") for each in (tax, over_eca))]
            )
    return markdown(COLUMNS, cells, ("network", "step"))
