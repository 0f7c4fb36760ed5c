"""What to paste where a site was left alone, by reason code (`compile/reasons.py`, docs/reasons.md).

Codes from ECA301 on say why one plan does not fit, not why a site was left alone.
"""

from __future__ import annotations

from typing import NamedTuple

from ..compile import reasons


class Fix(NamedTuple):
    """Advice, and the code or command that follows it ("" where there is nothing to change)."""

    advice: str
    paste: str


SWITCH_ON = Fix(
    "Compile with this package's backend; everything that is no ECA is Inductor's as before.",
    'model = torch.compile(model, backend="eca_triton")',
)
UNREACHED = Fix(
    "Dynamo compiled no call of it. Find out whether it is called at all, and where the graph breaks.",
    "torch.compile(model, fullgraph=True)(*inputs)  # raises at the first graph break",
)
OTHER_LAYER = Fix(
    "If it was meant to be ECA, call the layer of this package; it takes the same checkpoints.",
    "self.attention = eca_triton.ECA(channels)",
)
ANOTHER = "Nothing to change, if this is meant: it is another layer."
PLAIN = "return x * gate  # of ECA: sigmoid(conv1d(mean of x over its positions))"

FIXES: dict[str, Fix] = {
    reasons.EVEN_TAPS: Fix(
        "Choose an odd number of taps: an even one shifts the gate by half a channel.",
        "self.conv = nn.Conv1d(1, 1, k | 1, padding=k // 2, bias=False)",
    ),
    reasons.CONVOLUTION: Fix(
        "ECA slides one filter over neighbouring channels: stride, dilation and groups are 1.",
        "self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)",
    ),
    reasons.PADDING: Fix(
        "Pad so that every channel keeps its neighbours.",
        "self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)",
    ),
    reasons.GATE_PATH: Fix(ANOTHER, ""),
    reasons.SHARED: Fix(
        "Let the gate have one reader: compute what is logged or returned beside it from a detached copy, "
        "outside the compiled region.",
        "@torch.compiler.disable\ndef log_gate(x): ...",
    ),
    reasons.GATE_FUNCTION: Fix(ANOTHER, ""),
    reasons.OTHER_OPERAND: Fix("Multiply the map that was pooled, in its own shape.", PLAIN),
    reasons.POOL_PATH: Fix(ANOTHER, ""),
    reasons.NOT_MEAN: Fix("ECA pools by the mean over all positions.", "pooled = x.mean((2, 3))"),
    reasons.CHANNEL_ORDER: Fix(
        "Check the views: channels lie along the convolution's last axis, one image to a row.",
        "gate = self.conv(pooled.view(N, 1, C)).sigmoid().view(N, C, 1, 1)",
    ),
    reasons.MUTATED: Fix(
        "Write the change of the map out of place, or after the multiplication.",
        "x = x + y  # not: x += y",
    ),
    reasons.DTYPE: Fix("Cast the map before the layer.", "x = x.to(torch.bfloat16)"),
    reasons.GRAD_MODE: Fix(
        "Put the whole layer inside or outside of the context.", "with torch.no_grad():\n    y = self.eca(x)"
    ),
    reasons.WRAPPED: Fix(
        "Call the operator itself, which has rules for vmap, grad and jvp.",
        "y = eca_triton.eca(x, self.conv.weight)",
    ),
    reasons.UNEXPECTED: Fix(
        "This is a bug of eca_triton's; the layer runs as before. Please report it with this output.",
        "python -m eca_triton doctor",
    ),
    reasons.DEVICE: Fix("Move model and inputs to a GPU.", 'model, x = model.to("cuda"), x.to("cuda")'),
    reasons.KERNEL_DTYPE: Fix("Run in a type that the kernels take.", "model = model.to(torch.bfloat16)"),
    reasons.TINY: Fix(
        "Nothing to change: this map is too small to gain. A larger batch would.",
        "ECA_TRITON_FORCE=1 python train.py  # lowers it all the same",
    ),
    reasons.DISABLED: Fix("Lowering was switched off; switch it on.", "unset ECA_TRITON_DISABLE"),
    reasons.NO_TRITON: Fix("Install Triton.", "pip install triton"),
    reasons.NO_WIN: Fix("Nothing to change: no plan is predicted to be faster here than stock Inductor.", ""),
    reasons.ASKED: Fix("Let the plan be chosen by cost.", "unset ECA_TRITON_PLAN"),
    reasons.TRAINS: Fix("Export the network for inference.", "torch.export.export(model.eval(), (x,))"),
    reasons.PACKAGED: Fix("Nothing to change: the package has Inductor's own code there.", ""),
}
