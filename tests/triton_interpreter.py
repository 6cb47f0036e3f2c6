"""Triton's interpreter, which runs kernels on a CPU, made whole: two things that 3.6 lacks there.

numpy 2.4 takes no array of one number as an index, and tl.dot multiplied the bits of bf16 as if they were numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter

_patch, _dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot


def _patch_index(tensor: Any, scope: Any) -> None:
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _dot_wide(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    return _dot(self, _wide(a), _wide(b), *rest)


def _wide(tile: Any) -> Any:
    if tile.dtype.scalar != tl.bfloat16:
        return tile
    bits = tile.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


interpreter._patch_lang_tensor = _patch_index
interpreter.InterpreterBuilder.create_dot = _dot_wide
