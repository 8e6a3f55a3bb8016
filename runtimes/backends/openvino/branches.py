"""The outputs of branches (If), kept where nothing else is written.

OpenVINO 2026.4 sets aside the arrays behind a branch after the branch has run, and one of them may share a block of
memory with what came out of it. Where that one needs a larger block than ever before, the block is made anew, and the
next product reads whatever lies there: other numbers in every run, NaN among them, until the block is large enough. An
output of the whole model has a block of its own.
"""

from __future__ import annotations

from typing import Any


def keep_branches(model: Any) -> None:
    """Make every output of a branch an output of the model as well."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "If":
            model.add_outputs([port for port in node.outputs() if not _is_given(port)])


def _is_given(port: Any) -> bool:
    return any(reader.get_node().get_type_name() == "Result" for reader in port.get_target_inputs())
