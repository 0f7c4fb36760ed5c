"""Ways to write to a map [N, 8, 6, 5] of float32, each a function of it, and calls that only read."""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LIBRARY = torch.library.Library("eca_writes", "DEF")
LIBRARY.define("double_(Tensor(a!) x) -> ()", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.define(
    "mean(Tensor(a!) x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)  # no mean, for all its name


@torch.library.impl(LIBRARY, "double_", "CompositeExplicitAutograd")
def _double(x: Tensor) -> None:
    x.mul_(2)


@torch.library.impl(LIBRARY, "mean", "CompositeExplicitAutograd")
def _mean(x: Tensor) -> Tensor:
    x.mul_(2)
    return x.new_ones(())


@torch.library.register_fake("eca_writes::double_", lib=LIBRARY)
def _fake_double(x: Tensor) -> None: ...


@torch.library.register_fake("eca_writes::mean", lib=LIBRARY)
def _fake_mean(x: Tensor) -> Tensor:
    return x.new_empty(())


OURS = torch.ops.eca_writes
Way = Callable[[Tensor], object]


def ones(x: Tensor) -> Tensor:
    return torch.ones_like(x)


def first(x: Tensor) -> Tensor:
    """An index along the channels."""
    return torch.zeros(1, dtype=torch.int64, device=x.device)


def row(x: Tensor) -> Tensor:
    """A vector [8] that shares the map's memory, as the running statistics of a norm would."""
    return x.view(-1)[:8]


def setitem(x: Tensor) -> None:
    x[:, 0] = 7


def setitem_with_a_mask(x: Tensor) -> None:
    x[x > 0] = 7


def augmented_item(x: Tensor) -> None:
    x[:, 0] += 7


def augmented(name: str, other: float) -> Way:
    def way(x: Tensor) -> None:
        getattr(operator, name)(x, other)

    return way


METHODS: dict[str, tuple[object, ...]] = {
    "mul_": (2,), "add_": (1,), "sub_": (1,), "div_": (2,), "multiply_": (2,), "zero_": (), "fill_": (3,),
    "clamp_": (0, 0.5), "clip_": (0, 0.5), "clamp_min_": (0.5,), "relu_": (), "sigmoid_": (), "tanh_": (),
    "neg_": (), "abs_": (), "exp_": (), "floor_": (), "ceil_": (), "round_": (), "trunc_": (), "pow_": (2,),
    "erf_": (), "cumsum_": (1,), "cumprod_": (1,), "sign_": (), "square_": (), "copysign_": (-1.0,),
    "remainder_": (0.3,),
}  # fmt: skip
WRITES: dict[str, Way] = {
    **{name: (lambda x, name=name, rest=rest: getattr(x, name)(*rest)) for name, rest in METHODS.items()},
    "copy_": lambda x: x.copy_(ones(x)),
    "fill_diagonal_": lambda x: x.view(8, -1).fill_diagonal_(9),
    "addcmul_": lambda x: x.addcmul_(ones(x), ones(x)),
    "addcdiv_": lambda x: x.addcdiv_(ones(x), ones(x)),
    "lerp_": lambda x: x.lerp_(ones(x), 0.5),
    "masked_fill_": lambda x: x.masked_fill_(x > 0, 3),
    "masked_scatter_": lambda x: x.masked_scatter_(x > 0, ones(x)),
    "index_fill_": lambda x: x.index_fill_(1, first(x), 3),
    "index_copy_": lambda x: x.index_copy_(1, first(x), ones(x)[:, :1]),
    "index_add_": lambda x: x.index_add_(1, first(x), ones(x)[:, :1]),
    "index_put_": lambda x: x.index_put_((first(x),), torch.tensor(3.0)),
    "scatter_": lambda x: x.scatter_(1, torch.zeros(x.shape, dtype=torch.int64), 3.0),
    "scatter_add_": lambda x: x.scatter_add_(1, torch.zeros(x.shape, dtype=torch.int64), ones(x)),
    "put_": lambda x: x.put_(first(x), torch.tensor([9.0])),
    "swap_by_copy": lambda x: x.copy_(x.flip(1)),
    "setitem": setitem,
    "setitem-with-a-mask": setitem_with_a_mask,
    "augmented-item": augmented_item,
    **{
        name: augmented(name, other)
        for name, other in {"iadd": 1, "isub": 1, "imul": 2, "itruediv": 2, "ipow": 2, "imod": 0.3}.items()
    },
    "dunder-iadd": lambda x: x.__iadd__(1),
    "dunder-imul": lambda x: x.__imul__(2),
    "unbound-method": lambda x: torch.Tensor.mul_(x, 2),
    "aten-overload": lambda x: torch.ops.aten.mul_.Tensor(x, 2),
    "aten-overload-by-keyword": lambda x: torch.ops.aten.mul_.Tensor(self=x, other=2),
    "aten-packet": lambda x: torch.ops.aten.mul_(x, 2),
    "custom-packet": lambda x: OURS.double_(x),
    "custom-overload": lambda x: OURS.double_.default(x),
    "custom-overload-by-keyword": lambda x: OURS.double_.default(x=x),
    "custom-with-the-name-of-another": lambda x: OURS.mean(x),
    "foreach-mul": lambda x: torch._foreach_mul_([x], 2.0),
    "foreach-add-of-two": lambda x: torch._foreach_add_([ones(x), x], 1.0),
    "foreach-copy": lambda x: torch._foreach_copy_([x], [ones(x)]),
    "foreach-clamp": lambda x: torch._foreach_clamp_max_([x], 0.25),
    "out": lambda x: torch.add(ones(x), 1, out=x),
    "out-tuple": lambda x: torch.max(torch.stack([x, x + 1]), 0, out=(x, ones(x).long())),
    "out-of-cat": lambda x: torch.cat([ones(x)[:, :4], ones(x)[:, 4:]], 1, out=x),
    "out-of-where": lambda x: torch.where(x > 0, x, ones(x), out=x),
    "out-of-normalize": lambda x: F.normalize(x.clone(), out=x),
    "relu-inplace": lambda x: F.relu(x, inplace=True),
    "relu-inplace-by-position": lambda x: F.relu(x, True),
    "silu-inplace": lambda x: F.silu(x, inplace=True),
    "hardswish-inplace": lambda x: F.hardswish(x, inplace=True),
    "leaky-relu-inplace": lambda x: F.leaky_relu(x, 0.3, True),
    "elu_": lambda x: F.elu_(x),
    "selu_": lambda x: F.selu_(x),
    "celu-inplace": lambda x: F.celu(x, inplace=True),
    "threshold-inplace": lambda x: F.threshold(x, 0.1, 20, True),
    "hardtanh_": lambda x: F.hardtanh_(x, -0.1, 0.1),
    "mish-inplace": lambda x: F.mish(x, inplace=True),
    "view": lambda x: x.view(-1).mul_(2),
    "flatten": lambda x: x.flatten(1).mul_(2),
    "select": lambda x: x.select(1, 0).zero_(),
    "narrow": lambda x: x.narrow(1, 2, 3).zero_(),
    "transpose": lambda x: x.transpose(0, 1).add_(1),
    "permute": lambda x: x.permute(0, 2, 3, 1).add_(1),
    "unbind": lambda x: x.unbind(1)[0].zero_(),
    "split": lambda x: x.split(4, 1)[1].zero_(),
    "chunk": lambda x: x.chunk(2, 1)[1].zero_(),
    "expand-of-a-slice": lambda x: x[:, 1:2].squeeze(1).add_(1),
    "detach": lambda x: x.detach().mul_(2),
    "data": lambda x: x.data.mul_(2),
    "diagonal": lambda x: x.diagonal(0, 1, 2).zero_(),
    "as-strided": lambda x: x.as_strided((8,), (1,)).zero_(),
    "running-mean-of-batch-norm": lambda x: F.batch_norm(ones(x), row(x), torch.ones(8), training=True),
    "running-var-of-batch-norm": lambda x: torch.batch_norm(
        ones(x), None, None, torch.zeros(8), row(x), True, 0.5, 1e-5, False
    ),
    "running-mean-of-instance-norm": lambda x: F.instance_norm(2 * ones(x), row(x), torch.ones(8)),
    "embedding-with-a-norm": lambda x: F.embedding(first(x), x.view(-1, 5), max_norm=0.1),
}  # fmt: skip

READS: dict[str, Way] = {
    "nothing": lambda x: None,
    "sum": lambda x: x.sum(),
    "clone-written-to": lambda x: x.clone().mul_(2),
    "copy-written-to": lambda x: (x + 1).relu_(),
    "source-of-copy": lambda x: ones(x).copy_(x),
    "source-of-foreach": lambda x: torch._foreach_copy_([ones(x)], [x]),
    "other-operand": lambda x: ones(x).add_(x),
    "other-operand-of-iadd": lambda x: operator.iadd(ones(x), x),
    "relu-without-inplace": lambda x: F.relu(x, False),
    "batch-norm-without-training": lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8)),
    "batch-norm-with-other-statistics": lambda x: F.batch_norm(
        x, torch.zeros(8), torch.ones(8), training=True
    ),
    "sizes": lambda x: x.new_zeros(x.size(0), x.shape[1]).add_(x.stride(0)),
    "convolution": lambda x: F.conv2d(x, torch.ones(8, 8, 1, 1)),
    "interpolation": lambda x: F.interpolate(x, scale_factor=2),
    "einsum": lambda x: torch.einsum("nchw->nc", x),
    "embedding": lambda x: F.embedding(first(x), x.view(-1, 5)),
}
