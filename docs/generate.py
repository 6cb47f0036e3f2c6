"""Writes what the README and the pages take from the code, between markers such as <!-- methods --> and <!-- end -->.

python docs/generate.py            # rewrites them
python docs/generate.py --check    # exits 1 where one is not what the code says
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from transformers import LlamaConfig

from polyvera.adapter.method import (
    BASIS,
    D_INIT,
    IDENTITY,
    KAIMING,
    LETTERS,
    METHODS,
    NORMAL,
    ONES,
    OWN_BASES,
    OWN_WIDTH,
    ROW_NORM,
    SCALE,
    ZEROS,
    Factor,
    Method,
)
from polyvera.adapter.spec import AdapterSpec
from polyvera.model.shapes import ModelShapes, model_shapes
from polyvera.plan import bytes_text, compare, plan_rows
from polyvera.server.config import Serving
from polyvera.settings.reference import page
from polyvera.train.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = tuple(ROOT / name for name in ("README.md", "docs/architecture.md", "docs/methods.md"))
REFERENCE = ROOT / "docs" / "reference"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TREE_COLUMN = 28
PLAN_COLUMNS = ("method", "rank", "trained", "stored", "per GiB", "10,000 of them", "training", "trains on")
# What each letter adds to the numbers that a layer of I inputs and O outputs stores at rank r.
SIZES = {"A": "r·I", "B": "O·r", "C": "r·r", "d": "r", "b": "O", "m": "O"}
INITS = {
    KAIMING: "kaiming",
    NORMAL: "N(0, 0.02²)",
    ZEROS: "0",
    ONES: "1",
    IDENTITY: "identity",
    D_INIT: f"{AdapterSpec().d_init:g}",
    ROW_NORM: "‖W‖",
    BASIS: "kaiming",
    **{init: init for init in OWN_BASES},
}

# The shapes of two models, as their published configurations give them.
SMOLLM2 = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    tie_word_embeddings=True,
)
LLAMA3_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    tie_word_embeddings=False,
)


def methods() -> str:
    """The table of methods."""
    rows = [
        {
            "method": f"`{row.name}`",
            **{letter: _factor(row, row.factors.get(letter)) for letter in LETTERS},
            "stored a layer": " + ".join(_size(row, letter) for letter in row.trained),
            "source": row.source,
        }
        for row in METHODS.values()
    ]
    return markdown(rows)


def _size(row: Method, letter: str) -> str:
    if row.factors[letter].single:
        return "1"
    size = SIZES[letter].replace("r", "O") if row.rank == OWN_WIDTH else SIZES[letter]
    return size + "/L" * (letter in row.tied)


def _factor(row: Method, factor: Factor | None) -> str:
    if factor is None:
        return ""
    init = row.scaling.replace("alpha,r", "alpha/r") if factor.init == SCALE else INITS[factor.init]
    if factor.shared:
        return f"**shared**, {init}"
    return f"{'**tied**' if factor.tied else 'trained' if factor.trained else 'frozen'}, {init}"


def plan() -> str:
    """Every method on SmolLM2-135M and on Llama-3-8B, at its own rank, on the query and value projections."""
    return "\n\n".join(
        _planned(name, model_shapes(config), dtype)
        for name, config, dtype in (("SmolLM2-135M", SMOLLM2, "float32"), ("Llama-3-8B", LLAMA3_8B, "bfloat16"))
    )


def _planned(name: str, shapes: ModelShapes, dtype: str) -> str:
    costs = compare(shapes.sites, shapes.num_params, base_dtype=dtype)
    title = (
        f"**{name}**, {shapes.num_params:,} parameters in {dtype}, {len(shapes.sites)} layers adapted; the shared "
        f"basis takes {bytes_text(max(cost.basis_bytes for cost in costs))} of memory once"
    )
    many = [{"10,000 of them": bytes_text(10_000 * cost.stored_bytes)} for cost in costs]
    rows = [row | more for row, more in zip(plan_rows(costs), many, strict=True)]
    return f"{title}\n\n{markdown(rows, PLAN_COLUMNS)}"


def tree() -> str:
    """Every file of the package with the first sentence of its docstring, a folder with that of its `__init__`."""
    lines = [f"{name:<{TREE_COLUMN}}{text}".rstrip() for name, text in _below(ROOT / "polyvera", "")]
    return "\n".join(["```text", "polyvera/", *lines, "```"])


def _below(folder: Path, indent: str) -> Iterator[tuple[str, str]]:
    indent += "  "
    for file in sorted(folder.glob("*.py")):
        if file.stem != "__init__":
            yield indent + file.name, _sentence(file)
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"):
        if any(inner.glob("*.py")):
            yield f"{indent}{inner.name}/", _sentence(inner / "__init__.py")
            yield from _below(inner, indent)
        else:
            yield f"{indent}{inner.name}/", ", ".join(sorted(path.name for path in inner.iterdir()))


def _sentence(file: Path) -> str:
    """The first sentence of a module's docstring, in one line, without its full stop."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.(?:\s|$)", " ".join(text.split("\n\n")[0].split()), maxsplit=1)[0]


def markdown(rows: Sequence[Mapping[str, str]], columns: Sequence[str] = ()) -> str:
    """Rows as a table of GitHub's Markdown."""
    names = columns or list(rows[0])
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


BLOCKS: Mapping[str, Callable[[], str]] = {"methods": methods, "plan": plan, "tree": tree}


def generated(text: str) -> str:
    """The text with every block as the code gives it."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


ORDER = """A flag wins over a key of the file, the key over the environment variable, and the variable over the default.
A value that you give counts as given, even if it equals the default. An unknown key is an error, and so is a setting
that is given under two of its names."""
RECIPE = f"""Every setting of `polyvera train` is a flag, a key of the TOML file that you name with `--recipe FILE`, an
environment variable, and an argument of `polyvera.Recipe`. `polyvera train --schema` prints the JSON schema of it.
[Training](../training.md) explains what to choose.

{ORDER}

Every other verb takes `--recipe FILE`, too, and reads the settings that it shares from it: the store, the model, the
columns of the data."""
SERVING = f"""Every setting of `polyvera serve MODEL` is a flag, a key of the TOML file named with `--config FILE`,
and an environment variable; `model` is the argument. `polyvera serve --schema` prints the JSON schema of the file.
[Serving](../serving.md) explains what they do.

{ORDER} `--recipe FILE` takes the model and the store from a recipe, after `--config`."""


def files() -> dict[Path, str]:
    """Every page that is written here, wholly or in part, as the code gives it."""
    return {
        REFERENCE / "recipe.md": page(Recipe, "Settings of a training run", RECIPE),
        REFERENCE / "serving.md": page(Serving, "Settings of a server", SERVING),
        **{path: generated(path.read_text(encoding="utf-8")) for path in PAGES},
    }


def main() -> int:
    """Rewrites or checks the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args()
    for path, text in files().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if chosen.check:
            return 1
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
