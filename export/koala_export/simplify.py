"""Constant folding and clean-up of a traced graph, with onnxscript's and onnx_ir's own passes.

``onnxscript.optimizer.optimize`` does the same and more. Its rule that turns slices into a split searches the whole
graph for each slice, which takes most of its time, and finds nothing here.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

_ROUNDS = 2  # as onnxscript: what one round folds, the next can use
_RULES = (
    *(rules.mul_by_1_rule, rules.add_0_rule, rules.sub_0_rule, rules.div_by_1_rule),
    *(rules.cast_cast_rule, rules.no_op_cast_rule, rules.no_op_expand_rule),
    *(rules.reshape_reshape_rule, rules.unsqueeze_unsqueeze_rule, rules.squeeze_reshape_1d_rule),
    *(rules.no_op_transpose_rule, rules.transpose_transpose_rule),
    *(rules.collapse_slice_rule, rules.collapse_slice2_rule),
    *(rules.min_max_rule, rules.max_min_rule),  # to Clip
)


def simplify(model: ir.Model) -> None:
    """Fold constants, drop operations without effect, and keep one of each equal value; in place."""
    for _ in range(_ROUNDS):
        fold_constants(model, onnx_shape_inference=True)
        rewritten = RewritePass(_RULES)(model)
        common.RemoveUnusedNodesPass()(model)
        if not rewritten.modified:
            break
    for clean in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        clean(model)
