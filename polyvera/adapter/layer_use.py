"""Which of a module's layers its own code reads without calling them, by that code alone: no forward is run.

Mamba multiplies with `self.dt_proj.weight`, and nn.MultiheadAttention hands `self.out_proj.weight` to a function: an
adapter around such a layer is never asked.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache

from torch import nn

# What of a weight is no use of its numbers.
DESCRIPTIONS = frozenset(("dtype", "device", "shape", "size", "ndim", "dim", "numel", "is_meta", "requires_grad"))
READ, CALLED, MULTIPLIED = "read", "called", "multiplied"
SETUP = frozenset(("__init__", "_init_weights", "reset_parameters", "_reset_parameters", "__setstate__"))


# What a class computes and no output of it depends on.
UNUSED: Mapping[str, frozenset[str]] = {
    name: frozenset(("vision_model.head",))
    for name in ("SiglipForImageClassification", "Siglip2ForImageClassification")
}
# The classes whose layers get a batch as (tokens, rows, features).
TOKENS_FIRST = frozenset(
    ("XLNetModel", "FSMTEncoder", "FSMTDecoder", "LongformerSelfAttention", "LEDEncoderSelfAttention")
)
# Experts that are modules of their own.
LISTED_EXPERT = re.compile(r"(?:^|\.)experts\.\w*\d+\.")


def gets_chosen_tokens(name: str) -> bool:
    """Whether a layer, by its name, is an expert's own, which gets the tokens that a router sends it and not rows."""
    return LISTED_EXPERT.search(name) is not None


def gets_tokens_first(model: nn.Module, name: str) -> bool:
    """Whether a layer of a model gets (tokens, rows, features), by the classes of the modules that it is in."""
    parts = name.split(".")
    owners = (model.get_submodule(".".join(parts[:i])) for i in range(len(parts)))
    return any(type(owner).__name__ in TOKENS_FIRST for owner in owners)


def unused_parts(kind: type[nn.Module]) -> frozenset[str]:
    """The names of modules that a model of this class computes and does nothing with."""
    return UNUSED.get(kind.__name__, frozenset())


@cache
def read_only(kind: type[nn.Module]) -> frozenset[str]:
    """The names of children whose weight this class multiplies with, or reads without ever calling them."""
    found: dict[str, set[str]] = {READ: set(), CALLED: set(), MULTIPLIED: set()}
    for method in _methods(kind):
        for name, use in _uses(method):
            found[use].add(name)
    return frozenset(found[READ] - found[CALLED] | found[MULTIPLIED])


def _methods(kind: type) -> Iterator[ast.AST]:
    """The syntax of each method, the class's own and those that it inherits from classes of models."""
    seen = set(SETUP)
    for base in kind.__mro__:
        if base is nn.Module or base is object:
            continue
        for method in _syntax(base):
            if method.name not in seen:
                seen.add(method.name)
                yield method


@cache
def _syntax(kind: type) -> tuple[ast.FunctionDef, ...]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # made at run time, or without its source
        return ()
    body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
    return tuple(node for node in body if isinstance(node, ast.FunctionDef))


def _uses(method: ast.AST) -> Iterator[tuple[str, str]]:
    parents = {child: node for node in ast.walk(method) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(method):
        name = _own_attribute(node)
        if name is not None:
            use = _use(parents[node], parents)
            if use is not None:
                yield name, use


def _use(parent: ast.AST, parents: Mapping[ast.AST, ast.AST]) -> str | None:
    """What the code does with self.x, given the syntax around it."""
    if not isinstance(parent, ast.Attribute):
        return CALLED  # or handed on, or kept under another name
    if parent.attr != "weight" or not isinstance(parent.ctx, ast.Load):
        return None
    match parents.get(parent):
        case ast.Attribute(attr=attr) if attr in DESCRIPTIONS:
            return None
        case ast.BinOp(op=ast.MatMult()):
            return MULTIPLIED
    return READ


def _own_attribute(node: ast.AST) -> str | None:
    """x of self.x where it is read."""
    match node:
        case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Load()):
            return name
    return None
