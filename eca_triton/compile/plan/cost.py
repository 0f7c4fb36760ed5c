"""What a site costs: bytes, launches and instructions of stock Inductor and of every plan; pure functions.

Passes over the map are counted in S, the bytes of the map, for the site and its pointwise neighbours without
the convolution before it. Those of stock are the code that Inductor emits for a GPU
(`tests/deviceless/test_decision.py` compares them with it). It splits the pooling of few images into two
kernels and then moves up to a map more, which is not counted: stock is never made out to be slower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...activations import RECOMPUTED, SELECTING
from ...tuning.choice import choose
from ...tuning.layout import common_layout
from ...tuning.problem import EcaProblem
from ...tuning.targets import TARGETS, Target
from .facts import Facts

# What tells backward where ReLU was open, in S of a 16-bit map: a bit per element, or Inductor's bool.
PACKED_MASK, STORED_MASK = 1 / 16, 1 / 2

# A map of up to two thirds of L2 is still there for its second reader: the H200 reads 40 of 60 MB at full
# L2 speed, and 58 MB at half of it (te42kyfo/gpu-benches).
RESIDENT_SHARE = 2 / 3
# Of the instructions that its clock would allow, a multiprocessor issues so many beside its loads: estimated.
ISSUE_SHARE = 0.65
# What a product that nobody tuned reaches at least: of tensor cores' peak, and of copy bandwidth. Estimated.
TENSOR_SHARE, SLOW_SHARE = 1 / 3, 0.6
# Instructions per element of the machine code for sm_90. Ours, without and with a residual and ReLU: that of
# Triton 3.6 in tests/kernels/budgets.json ("56x56", "7x7", "14x14 last"; "tail" beside them); the lagged
# kernel, whose loops the budget does not count, as the others; the product, with both: 64 channels in
# test_aot_templates.py.
# Inductor's rescaling: the low end of what its kernels for contiguous maps have (24 to 30) and the figure for
# channels-last ones (23); 7x7 rows, which no vector divides, take 30 in either pass; pooling of aligned rows,
# a load, a conversion and a sum: estimated.
OURS_ALIGNED, OURS_ODD, OURS_LAST = (12.0, 16.0), (27.0, 41.0), (18.0, 22.0)
PRODUCT = 15.0
RESCALE_ALIGNED, RESCALE_ODD, RESCALE_LAST, POOL_ALIGNED, POOL_ODD = 24.0, 30.0, 23.0, 4.0, 30.0
VECTOR = 8  # elements of 16 bits in a vector access
# From 64 sums per multiprocessor on, Inductor leaves a sum to one program; below, it may cut it in two.
MANY_SUMS = 2**14


@dataclass(frozen=True)
class Cost:
    """Work of a GPU for one step: forward, and backward where there are gradients.

    Attributes:
        dram_bytes: Bytes that memory delivers and takes.
        l2_bytes: Bytes that the L2 cache delivers to the multiprocessors, those of memory included.
        launches: Kernels.
        instructions: Of threads, not warps.
    """

    dram_bytes: float
    l2_bytes: float
    launches: float
    instructions: float

    def time_s(self, target: Target) -> float:
        """The slowest of memory, L2 and instructions, and the launches."""
        issued_per_s = target.device.num_sms * target.clock_hz * 4 * target.device.warp_size * ISSUE_SHARE
        return (
            max(
                self.dram_bytes / target.copy_bytes_per_s,
                self.l2_bytes / target.l2_read_bytes_per_s,
                self.instructions / issued_per_s,
            )
            + self.launches * target.launch_s
        )


@dataclass(frozen=True)
class Work:
    """Passes over the map, in S.

    Attributes:
        fresh: Reads of what was made elsewhere.
        again: Reads of what the same few kernels have just read or written.
        written: Writes.
        launches: Kernels.
        instructions: Per element of the map.
        halo: Reads that never leave L2.
        scratch_bytes: Moved besides, of partial sums, gates and weights: in bytes.
    """

    fresh: float
    again: float
    written: float
    launches: float
    instructions: float
    halo: float = 0.0
    scratch_bytes: float = 0.0

    @property
    def traffic(self) -> float:
        """Passes over the map as Inductor counts them, in S: it sees neither L2 nor halo."""
        return self.fresh + self.again + self.written

    def cost(self, facts: Facts, target: Target) -> Cost:
        """The same in bytes and instructions on a target."""
        s = facts.numel * facts.dtype.itemsize
        resident = s <= RESIDENT_SHARE * target.device.l2_bytes
        return Cost(
            dram_bytes=s * (self.fresh + self.written + (0.0 if resident else self.again))
            + self.scratch_bytes,
            l2_bytes=s * (self.fresh + self.again + self.halo),
            launches=self.launches,
            instructions=facts.numel * self.instructions,
        )


def stock(facts: Facts) -> Work:
    """Return the work of stock Inductor for the site.

    Forward: the mean reads the map, the rescale reads and writes it, a residual is read. Batch norm's result
    has two readers and is stored: one write more, while the mean rides along; in float32 where SiLU, which
    reads it twice, follows. An activation of a map that is in memory is computed twice. Batch norm in
    training reads its input twice. A result that is read by pooling and the like alone is not stored. ReLU in
    training stores its mask in half a map of bf16. Backward: dy and x for the gate's gradient, dy and dx for
    the map's; batch norm adds three passes over a large map and one over a map that a single program holds.
    """
    residual = "residual" in facts.tail
    trains = facts.batch_norm == "train"
    widened = 4 / facts.dtype.itemsize if facts.activation == "silu" and facts.batch_norm == "eval" else 1.0
    produced = facts.batch_norm is not None or (facts.activation != "identity" and facts.grad)
    written = (0.0 if facts.inlined else 1.0) + (widened if produced else 0.0)
    # The convolution over channels is a library's kernel, around which padding and casts are kernels, too.
    launches = 3 + facts.wraps + facts.casts + 2 * trains
    pool, rescale = _stock_instructions(facts)
    forward = Work(1.0 + residual, trains + widened, written, launches, pool + rescale)
    if not facts.grad:
        return forward
    activation = not {*SELECTING, *RECOMPUTED}.isdisjoint(facts.tail)
    stored = activation and residual
    extra = 0.0 if not trains else 3.0 if facts.positions >= 56 * 56 else 1.0
    return Work(
        fresh=forward.fresh + 2.0 + 0.5 * activation,
        again=forward.again + 1.0 + extra + 0.5 * (activation and not stored),
        written=forward.written + 0.5 * activation + 1.0 + stored,
        launches=launches + 5 + 3 * trains,  # the convolution's gradients are two kernels
        instructions=2 * forward.instructions,
    )


def pool(facts: Facts) -> Work:
    """Stock's passes; one op for what is between them, each way."""
    as_stock = stock(facts)
    saved = facts.wraps + facts.casts + facts.grad
    return Work(
        as_stock.fresh,
        as_stock.again,
        as_stock.written,
        as_stock.launches - saved,
        as_stock.instructions,
    )


def gate(facts: Facts) -> Work:
    """One op reads what the gate comes from, and Inductor's rescaling reads it again, batch norm inside."""
    residual = "residual" in facts.tail
    return Work(1.0 + residual, 1.0, 0.0 if facts.inlined else 1.0, 3, sum(_stock_instructions(facts)))


def block(facts: Facts) -> Work:
    """One op reads every map once; in training one each way, and activations but ReLU are recomputed."""
    if not facts.one_kernel and not facts.grad:
        return gate(facts)  # what the op's lowering does instead
    residual = "residual" in facts.tail
    alone, tail = _instructions(facts)
    instructions = tail if facts.tail else alone
    launches, halo, scratch = _one_launch(facts, TARGETS[facts.target])
    forward = Work(1.0 + residual, 0.0, 1.0, launches, instructions, halo, scratch)
    if not facts.grad:
        return forward
    selects, recomputes = (any(name in facts.tail for name in names) for names in (SELECTING, RECOMPUTED))
    return Work(
        fresh=forward.fresh + 2.0 + PACKED_MASK * selects + (residual and recomputes),
        again=0.0,
        written=forward.written + PACKED_MASK * selects + 1.0 + (residual and (selects or recomputes)),
        launches=launches + 2,  # and the sum of the weight's gradient
        instructions=3 * instructions,  # budgets.json: a backward kernel has about twice its forward's
        halo=2 * halo,
    )


def batch_norm(facts: Facts) -> Work:
    """One op takes batch norm and ECA from the moments of each image and channel; its passes are native.

    Forward: a pass for the moments; one that reads the map again and writes the result. Backward: dy and the
    map for the moments of the gradient, which is stored where a residual wants it; both again for the map's.
    """
    residual = "residual" in facts.tail
    activation = not {*SELECTING, *RECOMPUTED}.isdisjoint(facts.tail)
    pool, rescale = _stock_instructions(facts)
    forward = Work(1.0 + residual, 1.0, 0.0 if facts.inlined else 1.0, 4, pool + rescale)
    if not facts.grad:
        return forward
    stored = residual and activation
    mask = facts.mask_traffic * activation
    return Work(
        fresh=forward.fresh + 2.0 + mask,
        again=forward.again + 2.0 + (0.0 if stored else mask),
        written=forward.written + 1.0 + stored + mask,
        launches=8,
        instructions=2 * forward.instructions,
    )


def convfold(facts: Facts) -> Work:
    """Pooling the input of the 1x1 convolution before the site; all else is that convolution's epilogue.

    With it: 2.5 S in a bottleneck, where the input has a quarter of the channels, if Inductor's template for
    products takes the epilogue; then the convolution's own write, which others count with it, is saved. Else
    4.25 S: the product is stored, and read once.
    """
    residual = "residual" in facts.tail
    inputs = (facts.expansion or 0.0) * facts.channels
    pooling = 0.0 if facts.pooled_by_producer else facts.expansion or 0.0
    launches = 1 + (not facts.pooled_by_producer) + pools_rows_first(facts.images, inputs)
    weight = facts.channels * inputs * facts.dtype.itemsize
    vectors = 4 * facts.images * (inputs + 2 * facts.channels)
    _, rescale = _stock_instructions(facts)
    if facts.epilogues:
        # The result takes the place of what the convolution would have written, and the map is in registers.
        in_place = rescale - POOL_ALIGNED
        return Work(residual, pooling, 0.0, launches, in_place, scratch_bytes=weight + vectors)
    written = 0.0 if facts.inlined else 1.0
    return Work(1.0 + residual, pooling, written, launches + 1, rescale, scratch_bytes=weight + vectors)


def convblock(facts: Facts) -> Work:
    """`convfold` with a product of ours: it writes the result, and the convolution's never exists."""
    folded = convfold(replace(facts, epilogues=True))
    return replace(folded, instructions=PRODUCT)


def waits_for_memory(facts: Facts) -> bool:
    """Return whether the product of `convblock` is bound by its bytes, and wins though it moves them slowly.

    Nobody tunes it as a library's products are: so its arithmetic must take less time at a third of the peak
    than its bytes at full speed, and those at 60 % of it less than they and the two passes that it saves.
    """
    target, s = TARGETS[facts.target], facts.numel * facts.dtype.itemsize
    expansion = facts.expansion or 0.0
    moved = s * (expansion + 1.0 + ("residual" in facts.tail))
    flops = 2.0 * facts.numel * expansion * facts.channels
    computing = flops / (TENSOR_SHARE * target.tensor_flops_per_s)
    return computing < moved / target.copy_bytes_per_s and moved / SLOW_SHARE < moved + 2.0 * s


def pools_rows_first(images: int, channels: float) -> bool:
    """Return whether so few means over the positions are taken in two steps, rows first.

    Of few and long sums Inductor would itself make two kernels, but which read the map anew.
    """
    return images * channels < MANY_SUMS


def _one_launch(facts: Facts, target: Target) -> tuple[int, float, float]:
    """Our kernel for the map: launches, halo in S, bytes of scratch."""
    n, c, hw = facts.images, facts.channels, facts.positions
    layout = common_layout((n, c, hw), (c * hw, 1, c) if facts.channels_last else (c * hw, hw, 1))
    front = facts.batch_norm is not None or facts.activation != "identity"
    itemsize, taps = facts.dtype.itemsize, facts.taps
    problem = EcaProblem(layout, facts.dtype, itemsize, target.device, "forward", taps, front=front)
    choice = choose(problem)
    config: Any = choice.config
    if config is None:
        return 3, 1.0, 0.0
    if choice.kernel == "lagged":
        # Counters are zeroed before; the map comes back from L2: 3.02 S (tests/kernels/test_l2_model.py).
        chunks = -(-hw // config.block_hw)
        return 2, 1.0, 2.0 * 4 * n * c * (chunks + 2)
    return 1, (facts.taps - 1) / config.block_c, 0.0


def _instructions(facts: Facts) -> tuple[float, float]:
    if facts.channels_last:
        return OURS_LAST
    # Half a vector serves as well: 14x14 takes 11.4.
    return OURS_ODD if facts.positions % (VECTOR // 2) else OURS_ALIGNED


def _stock_instructions(facts: Facts) -> tuple[float, float]:
    """Pooling and rescaling."""
    if facts.channels_last:
        return POOL_ALIGNED, RESCALE_LAST
    return (POOL_ODD, RESCALE_ODD) if facts.positions % VECTOR else (POOL_ALIGNED, RESCALE_ALIGNED)
