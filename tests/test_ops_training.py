"""`eca` where gradients are asked for: one node of two operators, and what it keeps between them."""

import copy
import itertools

import pytest
import torch
from eager_block import assert_as_good_as, eager_eca, to_double
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import eca_triton
from eca_triton.functional import BatchNormParameters
from eca_triton.ops.schema import ECA
from eca_triton.ops.schema_training import ECA_BACKWARD, ECA_FORWARD, mask_order_for
from eca_triton.reference_training import pack, unpack

ACTIVATIONS = ["identity", "relu", "relu6", "silu", "gelu", "hardswish"]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
NAMES = ("x", "weight", "bias", "bn_weight", "bn_bias", "residual")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class OperatorsRun(TorchDispatchMode):
    """Our operators that reach a backend, with their keyword arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "eca_triton":
            self.calls.append((func._opname, kwargs or {}))
        return func(*args, **(kwargs or {}))


def site(shape=(2, 8, 6, 6), dtype=torch.float32, memory_format=torch.contiguous_format, k=5):
    """Every tensor of a site; the statistics of its batch norm first."""
    c = shape[1]
    maps = [torch.randn(shape).to(dtype=dtype, memory_format=memory_format) for _ in range(2)]
    vectors = (torch.randn(1, 1, k), torch.randn(1), torch.rand(c) + 0.5, torch.randn(c))
    x, residual = maps
    tensors = (x, *(v.to(dtype) for v in vectors), residual)
    return (torch.randn(c).to(dtype), (torch.rand(c) + 0.5).to(dtype)), dict(zip(NAMES, tensors, strict=True))


def by_op(statistics, x, weight, bias, bn_weight, bn_bias, residual, **options):
    return ECA(x, weight, bias, *statistics, bn_weight, bn_bias, residual, **options)


def by_eager(statistics, x, weight, bias, bn_weight, bn_bias, residual, *, out_dtype=None, **options):
    bn = (*statistics, bn_weight, bn_bias)
    out = eager_eca(x, weight, bias, bn=bn, residual=residual, **options)
    return out if out_dtype is None else out.to(out_dtype)


def gradients(block, statistics, tensors, wanted=NAMES, upstream=None, **options):
    leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in tensors.items()}
    out = block(statistics, **leaves, **options)
    if upstream is None:  # the same number in every dtype, and positive: sums that cancel have few digits
        upstream = (torch.arange(out.numel()).view_as(out) * 5 % 8 + 1) / 8
    out.backward(upstream.to(out.dtype))
    return {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_as_exact_as_eager(activation, layout, dtype):
    """Over several sites together: how exact a single sum comes out is luck, for eager too."""
    runs = []
    for number, (gate, circular) in enumerate(itertools.product(["sigmoid", "hard_sigmoid"], [False, True])):
        statistics, tensors = site((2, 8 + 3 * (number % 2), 5, 4), dtype, FORMATS[layout])
        options = {"activation": activation, "gate": gate, "circular": circular, "gain": 0.5}
        got = gradients(by_op, statistics, tensors, **options)
        native = gradients(by_eager, statistics, tensors, **options)
        exact = gradients(by_eager, to_double(statistics), to_double(tensors), **options)
        assert got.keys() == exact.keys()
        assert all(tensor.dtype == dtype for tensor in got.values())
        runs.append((got, native, exact))
    for name in ("out", *NAMES):
        assert_as_good_as(*(torch.cat([run[i][name].flatten() for run in runs]) for i in range(3)))


@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
def test_every_subset_of_the_gradients_is_computed_and_no_other(activation):
    statistics, tensors = site()
    everything = gradients(by_op, statistics, tensors, activation=activation)
    for size in range(1, len(NAMES)):
        for wanted in itertools.combinations(NAMES, size):
            with OperatorsRun() as run:
                got = gradients(by_op, statistics, tensors, wanted, activation=activation)
            assert got.keys() == {"out", *wanted}
            for name, tensor in got.items():
                torch.testing.assert_close(tensor, everything[name])
            if wanted == ("residual",) and activation == "identity":
                assert [name for name, _ in run.calls] == ["eca_forward"]
                continue
            (forward, _), (backward, options) = run.calls
            assert (forward, backward) == ("eca_forward", "eca_backward")
            assert options.get("wants_x", True) == ("x" in wanted)
            assert options.get("wants_band", True) == bool({"weight", "bias"} & set(wanted))
            assert options.get("wants_bn", False) == bool({"bn_weight", "bn_bias"} & set(wanted))
            assert options.get("wants_residual", False) == ("residual" in wanted and activation != "identity")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", FORMATS)
def test_nothing_of_the_size_of_the_map_is_kept_but_x(layout, activation):
    """The residual, where what is activated is computed again; one bit per element, where that suffices."""
    statistics, tensors = site(memory_format=FORMATS[layout])
    kept = []
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        by_op(statistics, **leaves, activation=activation)
    x, residual = leaves["x"], leaves["residual"]
    maps = (
        {x.data_ptr()} if activation in ("identity", "relu", "relu6") else {x.data_ptr(), residual.data_ptr()}
    )
    assert {t.data_ptr() for t in kept if t.shape == x.shape} == maps
    masks = [t for t in kept if t.dtype == torch.uint8]
    assert [t.numel() * 8 for t in masks] == [x.numel()] * activation.startswith("relu")
    small = x.shape[0] * x.shape[1]
    assert all(t.numel() <= small for t in kept if t.shape != x.shape and t.dtype != torch.uint8)


def test_bits_are_kept_where_kernels_can_walk_them():
    x = torch.randn(2, 16, 3, 5)
    last, odd = x.to(memory_format=torch.channels_last), torch.randn(1, 3, 5, 5)
    assert mask_order_for(x, None, "relu") == mask_order_for(x, x, "relu6") == "contiguous"
    assert mask_order_for(last, last, "relu") == "channels_last"
    assert mask_order_for(x, last, "relu") == mask_order_for(x[..., 1:], None, "relu") == "none", "layouts"
    assert mask_order_for(odd, None, "relu") == "none", "no whole bytes"
    assert mask_order_for(x, x, "silu") == mask_order_for(x, x, "identity") == "none"


@pytest.mark.parametrize("order", FORMATS)
def test_bits_are_packed_in_the_order_of_memory(order):
    passes = (torch.randn(2, 8, 3, 5) > 0).contiguous(memory_format=FORMATS[order])
    mask = pack(passes, order)
    in_memory = torch.as_strided(passes, (2, 120), (120, 1))
    for image, bits in enumerate(in_memory.tolist()):
        assert mask[image].tolist() == [
            sum(bit << i for i, bit in enumerate(bits[e : e + 8])) for e in range(0, 120, 8)
        ]
    assert torch.equal(unpack(mask, passes.shape, order), passes)


def test_what_was_saved_may_come_back_with_other_strides():
    statistics, tensors = site(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.clone().contiguous()):
        got = gradients(by_op, statistics, tensors, activation="relu")
    torch.testing.assert_close(got, gradients(by_eager, statistics, tensors, activation="relu"))


def test_gradients_at_corners_and_at_nan_are_those_of_torch():
    x = torch.zeros(1, 8, 1, 1)
    u = torch.tensor([-1.0, 0.0, 1.0, 3.0, 6.0, 7.0, -3.0, float("nan")]).view_as(x)
    for activation in ACTIVATIONS:
        leaf, native = u.clone().requires_grad_(), u.clone().requires_grad_()
        ECA(x, torch.zeros(3), residual=leaf, activation=activation).sum().backward()
        by_name = torch.nn.functional if activation != "identity" else None
        (getattr(by_name, activation)(native) if by_name else native).sum().backward()
        torch.testing.assert_close(leaf.grad, native.grad, equal_nan=True)


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.parametrize(
    "strides",
    [(0, 0, 0, 0), (0, 1, 0, 0), (1, 2, 16, 96), (1, 8, 16, 96), (576, 72, 12, 2)],
    ids=["one number", "one per channel", "images innermost", "overlapping", "every other"],
)
def test_incoming_gradients_may_have_any_strides(strides, activation):
    statistics, tensors = site()
    upstream = torch.randn(1200).as_strided((2, 8, 6, 6), strides)
    got = gradients(by_op, statistics, tensors, upstream=upstream, activation=activation)
    wanted = gradients(by_eager, statistics, tensors, upstream=upstream.contiguous(), activation=activation)
    torch.testing.assert_close(got, wanted)


def test_dtypes_may_be_mixed():
    """As under autocast: float32 parameters and a half-precision map."""
    statistics, tensors = site()
    dtypes = {"x": torch.bfloat16, "residual": torch.float16}
    mixed = {name: t.to(dtypes.get(name, torch.float32)) for name, t in tensors.items()}
    exact = gradients(by_eager, to_double(statistics), to_double(mixed), activation="silu")
    got = gradients(by_op, statistics, mixed, activation="silu", out_dtype=torch.float32)
    assert got["out"].dtype == torch.float32
    for name, tensor in mixed.items():
        assert got[name].dtype == tensor.dtype
        eps = 32 * torch.finfo(tensor.dtype).eps if tensor.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(got[name].double(), exact[name], rtol=eps, atol=eps)


def test_a_site_under_autocast_is_trained_in_float32():
    module = eca_triton.ECA(channels=8)
    x = torch.randn(2, 8, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        module(x).sum().backward()
    assert (x.grad.dtype, module.conv.weight.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_first_and_second_order(activation, check):
    statistics, tensors = to_double(site((1, 4, 2, 1), k=3))
    inputs = tuple(t.requires_grad_() for t in tensors.values())

    def eca(*inputs):
        named = dict(zip(NAMES, inputs, strict=True))
        return by_op(statistics, **named, activation=activation, gain=2.0)

    assert check(eca, inputs, fast_mode=True)


def test_second_order_goes_through_the_pooled_means():
    """They are saved as numbers, and yet a function of x."""
    statistics, tensors = to_double(site((1, 8, 2, 2), k=3))
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}

    def second(block):
        out = block(statistics, **leaves, activation="relu")
        (first,) = torch.autograd.grad(out.square().sum(), leaves["x"], create_graph=True)
        return torch.autograd.grad(first.square().sum(), tuple(leaves.values()))

    torch.testing.assert_close(second(by_op), second(by_eager))


def test_batched_gradients():
    statistics, tensors = site()
    upstream = torch.randn(3, 2, 8, 6, 6)
    x = tensors["x"].requires_grad_()
    out = by_op(statistics, **tensors, activation="relu")
    (got,) = torch.autograd.grad(out, x, upstream, is_grads_batched=True, retain_graph=True)
    wanted = torch.stack([torch.autograd.grad(out, x, one, retain_graph=True)[0] for one in upstream])
    torch.testing.assert_close(got, wanted)


def test_transforms_see_the_plain_formula():
    statistics, tensors = to_double(site((3, 4, 2, 2), k=3))

    def loss(x):
        return by_op(statistics, **{**tensors, "x": x}, activation="silu").square().sum()

    x = tensors["x"].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(x), x)
    with OperatorsRun() as run:
        torch.testing.assert_close(grad(loss)(tensors["x"]), wanted)
    assert run.calls == []

    def per_sample(x, residual):
        named = {**tensors, "x": x[None], "residual": residual[None]}
        return by_op(statistics, **named, activation="silu").square().sum()

    torch.testing.assert_close(vmap(grad(per_sample))(tensors["x"], tensors["residual"]), wanted)


def test_statistics_that_need_gradients_and_activations_before_pooling_take_the_composition():
    statistics, tensors = site()
    mean, x = statistics[0], tensors["x"].requires_grad_()
    for needs_mean, options in ((False, {"pre_activation": "relu"}), (True, {})):
        mean.requires_grad_(needs_mean)
        with OperatorsRun() as run:
            by_op(statistics, **tensors, **options).sum().backward()
        assert [name for name, _ in run.calls] == ["gate_from_pool", "gate_from_pool_backward"]
    assert mean.grad is not None
    assert x.grad is not None


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    statistics, tensors = site()

    def block(statistics, **leaves):
        names = list(leaves)

        def run(*values):
            return by_op(statistics, **dict(zip(names, values, strict=True)), activation="relu")

        return checkpoint(run, *leaves.values(), use_reentrant=reentrant)

    torch.testing.assert_close(
        gradients(block, statistics, tensors), gradients(by_op, statistics, tensors, activation="relu")
    )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_step_holds_the_two_operators(backend):
    torch._dynamo.reset()
    compiled = torch.compile(by_op, backend=backend, fullgraph=True, dynamic=True)
    for activation in ("relu", "silu"):
        for shape in ((2, 8, 6, 6), (3, 8, 5, 7)):
            statistics, tensors = site(shape, memory_format=torch.channels_last)
            got = gradients(compiled, statistics, tensors, activation=activation)
            wanted = gradients(by_op, statistics, tensors, activation=activation)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_function_and_the_module_train_by_the_node():
    module = eca_triton.ECA(channels=8)
    x, residual = torch.randn(2, 2, 8, 4, 4)
    twin = copy.deepcopy(module)
    with OperatorsRun() as run:
        module(x).sum().backward()
        bn = BatchNormParameters(torch.zeros(8), torch.ones(8))
        out = eca_triton.eca(x, module.conv.weight, batch_norm=bn, residual=residual, activation="relu")
        out.sum().backward()
    assert [name for name, _ in run.calls] == ["eca_forward", "eca_backward"] * 2
    native = (
        eager_eca(x, twin.conv.weight).sum()
        + eager_eca(x, twin.conv.weight, bn=bn[:4], residual=residual, activation="relu").sum()
    )
    native.backward()
    torch.testing.assert_close(module.conv.weight.grad, twin.conv.weight.grad)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_opcheck_of_both_operators(activation):
    statistics, tensors = site((2, 8, 3, 3), memory_format=torch.channels_last, k=3)
    x, weight, bias, bn_weight, bn_bias, residual = (t.requires_grad_() for t in tensors.values())
    args = (x, weight, bias, *statistics, bn_weight, bn_bias, residual)
    order = mask_order_for(x, residual, activation)
    options = {"activation": activation, "mask_order": order, "gain": 0.5}
    with torch.no_grad():
        _, pooled, mask = ECA_FORWARD(*args, **options)
    saved = (pooled, None if order == "none" else mask)
    torch.library.opcheck(ECA_FORWARD, args, options)
    wants = {"wants_residual": True, "wants_bn": True}
    grad = torch.randn_like(x, requires_grad=True)
    torch.library.opcheck(ECA_BACKWARD, (grad, *args, *saved), options | wants)
