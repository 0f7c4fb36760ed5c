"""`eca` where gradients are asked for: their values, what computes them, and what is kept between."""

import itertools

import pytest
import torch
from eager_block import ACTIVATIONS, assert_as_good_as, to_double
from training_site import FORMATS, NAMES, OperatorsRun, by_eager, by_op, gradients, site

import eca_triton
from eca_triton.ops.outputs import mask_order_for
from eca_triton.ops.schema import ECA
from eca_triton.reference.training import pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_as_exact_as_eager(activation, layout, dtype):
    """Over several sites together: how exact a single sum comes out is luck, for eager too."""
    runs = []
    sites = itertools.product(["sigmoid", "hard_sigmoid"], [False, True], [True, False])
    for number, (gate, circular, batch_norm) in enumerate(sites):
        shape = (2, 8 + 3 * (number % 4 > 1), 5, 4)
        statistics, tensors = site(shape, dtype, FORMATS[layout], batch_norm=batch_norm)
        options = {"activation": activation, "gate": gate, "circular": circular, "gain": 0.5}
        got = gradients(by_op, statistics, tensors, **options)
        native = gradients(by_eager, statistics, tensors, **options)
        exact = gradients(by_eager, to_double(statistics), to_double(tensors), **options)
        assert got.keys() == exact.keys()
        assert all(tensor.dtype == dtype for tensor in got.values())
        runs.append((got, native, exact))
    for name in ("out", *NAMES):
        assert_as_good_as(
            *(torch.cat([run[i][name].flatten() for run in runs if name in run[i]]) for i in range(3))
        )


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
                assert run.names() == ["eca_forward"]
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
    """The residual, where what is activated is computed again; one bit per element, where that suffices.

    And no float32 copy of a half-precision map.
    """
    statistics, tensors = site(dtype=torch.bfloat16, memory_format=FORMATS[layout])
    kept = []
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        by_op(statistics, **leaves, activation=activation)
    x, residual = leaves["x"], leaves["residual"]
    maps = [x] if activation in ("identity", "relu", "relu6") else [x, residual]
    assert {t.data_ptr() for t in kept if t.shape == x.shape} == {t.data_ptr() for t in maps}
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
    uneven = torch.randn(1, 6, 4, 4).to(memory_format=torch.channels_last)
    assert mask_order_for(uneven, None, "relu") == "none", "a byte of two positions"
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
    for activation, function in ACTIVATIONS.items():
        leaf, native = u.clone().requires_grad_(), u.clone().requires_grad_()
        ECA(x, torch.zeros(3), residual=leaf, activation=activation).sum().backward()
        function(native).sum().backward()
        torch.testing.assert_close(leaf.grad, native.grad, equal_nan=True)


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.parametrize(
    "strides",
    [(0, 0, 0, 0), (0, 1, 0, 0), (1, 2, 16, 96), (1, 8, 16, 96), (576, 72, 12, 2), (0, 36, 6, 1)],
    ids=["one number", "one per channel", "images innermost", "overlapping", "every other", "one image"],
)
def test_incoming_gradients_may_have_any_strides(strides, activation):
    upstream = torch.randn(1200).as_strided((2, 8, 6, 6), strides)
    for batch_norm in (False, True):
        call = site(batch_norm=batch_norm)
        got = gradients(by_op, *call, upstream=upstream, activation=activation)
        wanted = gradients(by_eager, *call, upstream=upstream.contiguous(), activation=activation)
        torch.testing.assert_close(got, wanted)


def test_a_site_under_autocast_is_trained_in_float32():
    module = eca_triton.ECA(channels=8)
    x = torch.randn(2, 8, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        module(x).sum().backward()
    assert (x.grad.dtype, module.conv.weight.grad.dtype) == (torch.bfloat16, torch.float32)
