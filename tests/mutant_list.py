"""What `mutants.py` changes: by file, the tests that must see it, the text and what stands in its place."""

from __future__ import annotations

TUNING = (
    "tests/tuning/test_allowed.py",
    "tests/tuning/test_choice.py",
    "tests/tuning/test_tiles.py",
    "tests/autotune/test_candidates.py",
)
PLAN = ("tests/compile/test_plan.py",)
FOLD = ("tests/compile/test_convfold.py", "-k", "test_values or near_misses")
NEIGHBOURS = (
    "tests/compile/test_batch_norm_plan.py",
    "-k",
    "op_takes or tail_stays or stays_where or every",
)
NAMES = ("tests/test_unknown_names.py",)
DTYPES = ("tests/ops/test_dtypes.py",)
ERRORS = ("tests/ops/test_errors.py",)
GATES = ("tests/interpreter/test_forward.py", "-k", "not tile_channels_last and not lagged")
PRODUCT = ("tests/interpreter/test_projection.py",)
BACKWARD = ("tests/interpreter/test_kernel_backward.py",)
BATCH_NORM = ("tests/interpreter/test_batch_norm_training.py", "-k", "statistics or exact or rounding")
HEURISTIC = ("tests/tuning/test_heuristic.py",)
TRAINING = ("tests/ops/test_training.py",)
BATCH_NORM_OP = ("tests/ops/test_batch_norm.py",)
TABLE = ("tests/tuning/test_table.py", "tests/tuning/test_store.py")
KEY = ("tests/tuning/test_key.py",)

HOOKS = ("tests/compile/test_hooks.py",)
LAST = ("tests/report/test_last.py",)
WRITES = ("tests/compile/test_mutation.py",)
AT_THE_PRODUCT = (*WRITES, "-k", "where_the_product")
SIZES = ("tests/compile/test_sizes.py",)
MEMORY = ("tests/compile/test_memory.py",)
ALONG_THE_LAST = (*MEMORY, "-k", "along_the_last")
RECOGNIZE = ("tests/compile/test_recognize.py",)
FROZEN = ("tests/compile/test_frozen_batch_norm.py", "-k", "training or near")
GATE_FUNCTION = ("tests/compile/test_gate_function.py",)

LISTED: dict[str, list[tuple[tuple[str, ...], str, str]]] = {
    "eca_triton/compile/plan/decide.py": [
        (PLAN, " and each.traffic <= before.traffic", ""),
        (PLAN, "if size < TINY_MAP_BYTES and", "if size <= 0 and"),
        (PLAN, "if _rank(best) < _rank(before) or", "if _rank(best) <= _rank(before) or"),
        (PLAN, "return None if facts.trains_as_block else NOT_WHOLE", "return None"),
        (PLAN, "(facts.normalized and facts.grad) else None", "False else None"),
        (MEMORY, "return SPREAD if facts.reordered or (", "return SPREAD if ("),
        (MEMORY, "if facts.reindexed or facts.reordered:", "if facts.reindexed:"),
        (PLAN, "(facts.expansion > 1.0 and not facts.pooled_by_producer)", "facts.expansion > 1.0"),
        (PLAN, "return each.time_s, each.traffic", "return each.time_s, 0.0"),
        (PLAN, 'if device != "cuda":', 'if device == "cpu":'),
    ],
    "eca_triton/compile/plan/cost.py": [
        (
            PLAN,
            "if facts.channels_last:\n        return POOL_ALIGNED",
            "if False:\n        return POOL_ALIGNED",
        ),
        (PLAN, "(widened if produced else 0.0)", "(1.0 if produced else 0.0)"),
        (PLAN, "saved = facts.wraps + facts.casts + facts.grad", "saved = facts.wraps + facts.casts"),
        (PLAN, "3.0 if facts.positions >= 56 * 56 else 1.0", "3.0"),
        (PLAN, "s <= RESIDENT_SHARE * target.device.l2_bytes", "s <= 0"),
        (
            NAMES,
            "activation = not {*SELECTING, *RECOMPUTED}.isdisjoint(facts.tail)\n    stored",
            "activation = False\n    stored",
        ),
    ],
    "eca_triton/compile/plan/facts.py": [
        (NAMES, "if not set(said) <= set(names):", "if False:"),
    ],
    "eca_triton/compile/plan/reach.py": [
        (MEMORY, " or order_of(last) is None", ""),
        (FOLD, "if any(changed_between(node, step, steps[-1][1].next) for node in read):", "if False:"),
        (FOLD, "changed_between(node, step, steps[-1][1].next)", "changed_between(node, step, steps[-1][1])"),
        ((*PLAN, "-k", "bits"), " and x.shape[1] % 8 == 0", ""),
        ((*PLAN, "-k", "bits"), "is_channels_last(x) and", ""),
    ],
    "eca_triton/compile/emit/fold.py": [
        (FOLD, "if site.batch_norm is None and site.projection.bias is None:", "if site.batch_norm is None:"),
        (
            ("tests/compile/test_convfold.py", "-k", "overflows"),
            "y = cast(site, y, value(step).dtype)",
            "pass",
        ),
    ],
    "eca_triton/compile/match/projection.py": [
        (FOLD, "if op_name(node) in AUTOCAST:", "if False:"),
        (FOLD, "if any(changed_between(node, self.node, last) for node in read):", "if False:"),
        (FOLD, 'or arguments.get("groups", 1) != 1', ""),
        (FOLD, 'set(as_tuple(arguments.get("stride", 1))) != {1} or ', ""),
    ],
    "eca_triton/compile/emit/rewrite.py": [
        (MEMORY, "cast(site, source, value(node).dtype)", "source"),
        (
            NAMES,
            '{"gate": _gate, "pool": _gate_from_pool}[plan]',
            '{"gate": _gate}.get(plan, _gate_from_pool)',
        ),
        ((*WRITES, "-k", "behind"), "if memory not in given:", "if True:"),
        ((*WRITES, "-k", "behind"), "dtype and not given", "dtype"),
        (NEIGHBOURS, "torch.lerp, before, batch, norm.momentum", "torch.lerp, batch, before, norm.momentum"),
        (
            ("tests/compile/test_training.py", "-k", "one_op_each_way"),
            '"residual": end.residual, "gain": end.gain,',
            '"residual": end.residual, "gain": 1.0,',
        ),
        (
            ALONG_THE_LAST,
            "return call(site, torch.movedim, site.source, site.channel_dim, 1), absorbed",
            "return site.source, absorbed",
        ),
        (
            ALONG_THE_LAST,
            "torch.movedim, call(site, eca, *args, **keywords), 1, site.channel_dim)",
            "eca, *args, **keywords)",
        ),
    ],
    "eca_triton/compile/match/neighbours.py": [
        (MEMORY, "if value(residual).dtype == torch.float64 != value(mul).dtype:", "if False:"),
        (MEMORY, " or is_wrapped(value(residual))", ""),
        (NEIGHBOURS, "if changed_between(residual, step, tail[-1][1].next):", "if False:"),
        (NEIGHBOURS, "if step.kwargs or len(others)", "if len(others)"),
        (AT_THE_PRODUCT, "else [origin, *batch_norm.vectors]", "else batch_norm.vectors"),
        (AT_THE_PRODUCT, "read = [origin] if batch_norm is None", "read = [] if batch_norm is None"),
        (NEIGHBOURS, "gain = float(factors[0])", "gain = 1.0"),
    ],
    "eca_triton/compile/match/batch_norm.py": [
        (NEIGHBOURS, "all(set(node.users) == {self.node} for node in running)", "True"),
        (FROZEN, " and not seen.requires_grad", ""),
        (FROZEN, "tensor_users(product) != [node] or ", ""),
    ],
    "eca_triton/compile/chain.py": [
        (
            ("tests/compile/test_caches.py", "-k", "uuid"),
            "return None if None in uuids else tuple(uuids)",
            "return tuple(uuids)",
        ),
    ],
    "eca_triton/compile/inductor/lowering.py": [
        (NAMES, '    "silu": lambda v: v * ops.sigmoid(v),', '    "silu": lambda v: ops.relu(v),'),
    ],
    "eca_triton/reference/inference.py": [
        (DTYPES, "(weight if bias is None else bias).dtype", "weight.dtype"),
        (
            DTYPES,
            "out_dtype = a.out_dtype or a.pooled.dtype\n    return factor",
            "out_dtype = a.pooled.dtype\n    return factor",
        ),
    ],
    "eca_triton/reference/arguments.py": [
        (DTYPES, "torch.promote_types(self.grad.dtype, self.residual.dtype)", "self.grad.dtype"),
    ],
    "eca_triton/activations.py": [
        (("tests/test_reference.py",), "torch.where((u > -3) & (u < 3), dy / 6, 0.0)", "dy / 6"),
        (TRAINING, "~((u <= 0) | (u >= 6))", "~(u <= 0)"),
        (TRAINING, "s * (1 + u * (1 - s))", "s * (1 - u * (1 - s))"),
    ],
    "eca_triton/reference/training.py": [
        (TRAINING, "u = u * a.gain", "u = u / a.gain"),
    ],
    "eca_triton/ops/autograd.py": [
        (("tests/ops/test_autograd.py",), "create_graph=torch.is_grad_enabled()", "create_graph=False"),
        (("tests/ops/test_autograd.py",), "tensor.view_as(tensor)", "tensor"),
    ],
    "eca_triton/ops/implementation.py": [
        (PRODUCT, " and row.takes(a)", ""),
    ],
    "eca_triton/ops/operators.py": [
        (("tests/ops/test_autograd.py",), 'batched=("pooled",), composed=True', 'batched=("pooled",)'),
        (("tests/ops/test_transforms.py",), 'batched=("x", "residual")', 'batched=("x", "weight")'),
    ],
    "eca_triton/ops/outputs.py": [
        (DTYPES, "(a.weight if a.bias is None else a.bias).new_empty(1)", "a.weight.new_empty(1)"),
        (DTYPES, "return torch.empty_like(a.x, dtype=a.out_dtype)", "return torch.empty_like(a.x)"),
        (TRAINING, "if x.shape[1] % 8 == 0 else", "if True else"),
        (
            ("tests/ops/test_projection.py",),
            "not x.is_contiguous() and x.movedim(1, -1).is_contiguous()",
            "not x.is_contiguous()",
        ),
    ],
    "eca_triton/ops/batch_norm.py": [
        (BATCH_NORM_OP, 'if x.device.type in ("cpu", "cuda")', "if False"),
        (BATCH_NORM_OP, "var * (count / (count - 1))", "var"),
        (BATCH_NORM_OP, "~(out <= 0)", "out > 0"),
    ],
    "eca_triton/ops/checks.py": [
        (ERRORS, "or shape[-1] % 2 != 1", ""),
        (ERRORS, "k // 2 <= channels,", "True,"),
        (ERRORS, "if a.wants_bn and a.bn_mean is None:", "if False:"),
        (ERRORS, "or channels % 8 != 0", ""),
    ],
    "eca_triton/tuning/families/blocks.py": [
        (HEURISTIC, "1 << (size - 1).bit_length()", "1 << size.bit_length()"),
        (TUNING, "threads <= MAX_THREADS and tile_bytes <= SHARE_BYTES * threads", "threads <= MAX_THREADS"),
    ],
    "eca_triton/tuning/families/passes.py": [
        (HEURISTIC, "< vector <= layout.hw\n", "< vector\n"),
        (HEURISTIC, "        and layout.n * layout.c * layout.hw % vector == 0\n", ""),
        (HEURISTIC, 'problem.step == "pool"\n        and layout.vector', "layout.vector"),
        (HEURISTIC, "splits * 2 <= min(steps, MAX_SPLITS)", "splits <= min(steps, MAX_SPLITS)"),
        (
            HEURISTIC,
            "(1024, 512, 256), key=lambda block: -span % block",
            "(1024, 512, 256), key=lambda block: span % block",
        ),
    ],
    "eca_triton/tuning/layout.py": [
        (HEURISTIC, "while any(extent % limit for extent in extents):", "while extents[0] % limit:"),
        (HEURISTIC, "any(strides[unit] != 1 for strides in self.strides)", "self.strides[0][unit] != 1"),
        (HEURISTIC, "key=lambda d: strides[0][d], reverse=True", "key=lambda d: strides[0][d]"),
    ],
    "eca_triton/tuning/allowed.py": [
        (("tests/tuning/test_table.py",), "(power and value & (value - 1))", "False"),
    ],
    "eca_triton/tuning/families/lagged.py": [
        (TUNING, "block % unit == extent % unit == 0", "block % unit == 0"),
        (TUNING, "        and tiles <= config.lag  # else programs wait in vain\n", ""),
        (TUNING, "return None if problem.bits and layout.hw % OCTET else 1", "return 1"),
        (TUNING, 'problem.device.vendor != "nvidia" or ', ""),
        (TUNING, "3 if problem.recomputed and not problem.stored else 1", "1"),
    ],
    "eca_triton/tuning/key.py": [
        (KEY, "if problem.itemsize != problem.kept_itemsize:", "if False:"),
        (KEY, '"few" if waves <= WAVES', '"few" if waves < WAVES'),
    ],
    "eca_triton/tuning/table.py": [
        (TABLE, "and math.isfinite(time) and time > 0", "and math.isfinite(time)"),
        (TABLE, ' or isinstance(document["schema"], bool)', ""),
        (TABLE, "if set(config) != expected:", "if not expected <= set(config):"),
    ],
    "eca_triton/tuning/families/tile.py": [
        (TUNING, "(problem.bits and vec != OCTET) or ", ""),
        (TUNING, "        and config.block_halo == power_of_2(max(halo, 1))\n", ""),
        (TUNING, "and (masked or no_halo)", ""),
        (TUNING, "while n * -(-c // block_c) < num_sms and", "while False and"),
        (TUNING, "if not layout.contiguous or c * hw > MAX_INDEX:", "if not layout.contiguous:"),
    ],
    "eca_triton/tuning/choice.py": [
        (TUNING, "return 2 * programs < problem.device", "return programs < problem.device"),
    ],
    "eca_triton/launch/gates.py": [
        (GATES, 'a.bn if a.pre_activation == "identity" else None', "None"),
        (GATES, "n * c, c, 1.0 / hw, *pooled.stride()", "n * c, c, 1.0, *pooled.stride()"),
    ],
    "eca_triton/launch/devices.py": [
        (("tests/tuning/test_device.py",), "and x.numel() > 0\n", "\n"),
    ],
    "kernels/band.py": [
        (GATES, "return tl.sum(tl.where(valid, w * y, 0.0), 1)", "return tl.sum(w * y, 1)"),
        (GATES, "src = (src + C) % C", "src = src % C"),
        (GATES, "y = (y - center) * scale + shift", "y = y * scale + shift"),
    ],
    "kernels/elementwise.py": [
        (
            ("tests/interpreter/test_kernel_names.py",),
            "        slope = tl.where(u <= -3.0, 0.0, tl.where(u < 3.0, u * (1.0 / 3.0) + 0.5, 1.0))\n"
            '    else:\n        tl.static_assert(ACTIVATION == "identity", "unknown activation")',
            "        slope = tl.where(u <= -3.0, 0.0, tl.where(u < 3.0, u * (1.0 / 3.0) + 0.5, 1.0))",
        ),
        (
            BACKWARD,
            "        g = gate_of(z, GATE)\n        return g * (1.0 - g)",
            "        g = gate_of(z, GATE)\n        return g",
        ),
    ],
    "kernels/gate_backward.py": [
        (
            BACKWARD,
            "w = taps(weight_ptr + (K - 1) * stride_w, -stride_w, K, BLOCK_K)",
            "w = taps(weight_ptr, stride_w, K, BLOCK_K)",
        ),
        (BACKWARD, "if column < K:", "if column <= K:"),
    ],
    "kernels/batch_statistics.py": [
        (BATCH_NORM, "own += away * away * range_length(split, chunk, HW).to(tl.float32)", "own += 0.0"),
        (BATCH_NORM, "step = tl.where(mask, x - means, 0.0)", "step = x - means"),
        (
            BATCH_NORM,
            "total = tl.zeros((BLOCK_N, BLOCK_C), tl.float64)",
            "total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32) * 0.999",
        ),
    ],
    "kernels/batch_norm_backward.py": [
        (
            BATCH_NORM,
            "d_bias += tl.where(mask, factor * p_sum + d_pooled, 0.0)",
            "d_bias += tl.where(mask, factor * p_sum, 0.0)",
        ),
        (BATCH_NORM, "-scale * rstd * d_weight * inv_count", "-scale * d_weight * inv_count"),
    ],
    "eca_triton/compile/match/mutation.py": [
        ((*WRITES, "-k", "dunder"), "return list(node.all_input_nodes)", "return []"),
        ((*WRITES, "-k", "iadd or imul"), "if name in IN_PLACE_OPERATORS else []", "if False else []"),
        ((*WRITES, "-k", "running"), "        found += _statistics(bound)\n", ""),
        ((*WRITES, "-k", "embedding"), 'if bound.get("max_norm") is not None:', "if False:"),
        ((*WRITES, "-k", "out"), '[*named, node.kwargs.get("out")]', "named"),
        ((*WRITES, "-k", "view or data"), "storage(arg) == memory for", "arg is node for"),
        ((*RECOGNIZE, "-k", "without-grad"), "len({modes[call] for call in calls}) == 1", "True"),
    ],
    "eca_triton/compile/match/sizes.py": [
        ((*SIZES, "-k", "forty"), " if all(size % prime for size in known)", ""),
        ((*SIZES, "-k", "sum_of_symbols"), " and known.isdisjoint(values)", ""),
        ((*SIZES, "-k", "pieces"), "if not isinstance(expression, SMOOTH):", "if expression.is_Symbol:"),
    ],
    "eca_triton/compile/match/probe.py": [
        (MEMORY, "if not symbols_of(value(factor)) <= self.symbols:", "if False:"),
        ((*RECOGNIZE, "-k", "degrees"), "rel_tol=1e-12", "rel_tol=1e-1"),
        ((*SIZES, "-k", "pieces"), "if tuple(self.index.shape) != self.sizes(", "if () == self.sizes("),
        ((*SIZES, "-k", "pieces"), "if node.all_input_nodes != [source]:", "if False:"),
        ((*RECOGNIZE, "-k", "float8"), "dtype.itemsize in (2, 4)", "dtype.itemsize in (1, 2, 4)"),
        ((*RECOGNIZE, "-k", "float64"), "dtype.itemsize in (2, 4)", "dtype.itemsize in (2, 4, 8)"),
        ((*RECOGNIZE, "-k", "dropout"), 'bind(node).get("training") is False', "True"),
    ],
    "eca_triton/compile/match/gate_function.py": [
        (GATE_FUNCTION, "(torch.sigmoid, 1e-14, 0.0)", "(torch.sigmoid, 1e-5, 1)"),
        (GATE_FUNCTION, "return close and torch.equal(result == 0, expected == 0)", "return close"),
    ],
    "eca_triton/compile/hooks.py": [
        ((*HOOKS, "-k", "inside"), "if passes is not ours[hook]:", "if False:"),
        ((*HOOKS, "-k", "every"), "change_default(hook, functools", "(hook, functools"),
        ((*HOOKS, "-k", "run_already"), "    _enabled.clear()\n", ""),
        ((*HOOKS, "-k", "run_already"), "set_option(hook, without", "setattr(config, hook, without"),
    ],
    "eca_triton/compile/record.py": [
        ((*LAST, "-k", "sites_of"), "each.context is context", "False"),
        ((*LAST, "-k", "one_by_one"), "site.shape[1:2], ", ""),
        ((*LAST, "-k", "another_size"), "site.shape[1:2], ", "site.shape, "),
        ((*LAST, "-k", "reset"), "        _compilations.clear()", "        pass"),
        ((*LAST, "-k", "anew"), "        _compilations.remove(found)", "        pass"),
        ((*LAST, "-k", "listens"), "not each.told and", "True and"),
        ((*LAST, "-k", "warm"), "        current.keyed = True", "        pass"),
    ],
    "eca_triton/compile/passes.py": [
        ((*RECOGNIZE, "-k", "half_way"), "                module.graph = original\n", ""),
    ],
    "eca_triton/compile/match/graph.py": [
        (MEMORY, '"" if node.kwargs.get("out") is not None else name_of(node)', "name_of(node)"),
    ],
    "eca_triton/compile/match/recognize.py": [
        (MEMORY, "changed |= any(touched_between(", "changed |= any(changed_between("),
        (MEMORY, "if not lie_alike(one * other, value(mul)):", "if False:"),
        (MEMORY, "any(is_wrapped(value(node)) for node in (x, conv, mul))", "False"),
        (MEMORY, "if asking is not None:", "if False:"),
        ((*RECOGNIZE, "-k", "gate-changed"), "if changed_between(source, source.next, mul):", "if False:"),
        ((*SIZES, "-k", "one_set"), "for least in LEAST[", "for least in LEAST[:1]["),
        ((*RECOGNIZE, "-k", "error_of_ours"), "conv.name, exc_info=True)", "conv.name)"),
        ((*RECOGNIZE, "-k", "logits"), "if shared and len(probe.functions) > functions:", "if False:"),
    ],
    "eca_triton/tuning/store.py": [
        (TABLE, "    if size > MAX_BYTES:\n        raise OSError", "    if False:\n        raise OSError"),
    ],
    "eca_triton/deviceless/stand_in.py": [
        (("tests/report/test_explain.py", "-k", "size"), "return self.assumed or", "return"),
    ],
}  # fmt: skip
