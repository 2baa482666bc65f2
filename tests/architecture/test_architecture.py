"""The rules of the house that no unit test sees: import floors, budgets of size, and things that may not be done."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
FILES = sorted((SRC / "habilis").rglob("*.py"))
ALGORITHMS = sorted(f for f in (SRC / "habilis" / "algorithms").glob("*.py") if f.stem != "__init__")

FUNCTION_LINES = 60
FILE_LINES = 500
ALGORITHM_LINES = 300
READING_LINES = 1200

SHARED = ["policies/stochastic.py", "policies/action_map.py", "training/collector.py"]
ON_POLICY = [
    *SHARED,
    "functional/returns.py",
    "functional/policy_losses.py",
    "policies/actor_critic.py",
    "data/rollout.py",
]
ON_POLICY += ["training/on_policy.py"]
OFF_POLICY = ["functional/n_step.py", "data/replay.py", "training/off_policy.py"]
READING = {
    "ppo": [*ON_POLICY, "algorithms/ppo.py"],
    "a2c": [*ON_POLICY, "algorithms/a2c.py"],
    "reinforce": [*ON_POLICY, "data/whole_episodes.py", "algorithms/reinforce.py"],
    "trpo": [*ON_POLICY, "functional/linear_algebra.py", "algorithms/trpo.py"],
    "sac": [*SHARED, *OFF_POLICY, "functional/losses.py", "policies/squashed.py", "algorithms/sac.py"],
    "discrete_sac": [*SHARED, *OFF_POLICY, "functional/losses.py", "algorithms/discrete_sac.py"],
    "td3": [
        *("functional/losses.py", "policies/deterministic.py", "policies/action_map.py", "training/collector.py"),
        *(*OFF_POLICY, "algorithms/td3.py"),
    ],
    "dqn": [
        *("functional/losses.py", "functional/value_losses.py", "policies/value.py", "training/collector.py"),
        *(*OFF_POLICY, "algorithms/dqn.py"),
    ],
    "tabular": [
        *("functional/tabular.py", "nn/states.py", "policies/tabular.py", "training/collector.py"),
        *("algorithms/tabular.py", "training/tabular.py"),
    ],
}
"""What a person reads to understand an algorithm end to end: algorithm, losses, policy, buffer and loop."""

HEADLESS = ["core", "functional", "nn", "data", "checkpoint", "tracking", "policies", "plugins", "algorithms", "deploy"]
HEADLESS += ["evaluation", "training"]
"""Packages that work where there is no simulator, from the ground up."""

OUTSIDERS = ("mujoco", "gymnasium", "envpool", "warp", "tyro", "wandb", "tensorboard", "onnx", "onnxruntime", "imageio")
"""Packages that are imported by the function that needs them, never by importing one of ours."""

SERIALISERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
NUMPY_GENERATORS = {"default_rng", "Generator", "BitGenerator", "SeedSequence", "PCG64", "Philox"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "normal", "bernoulli", "multinomial"}
TORCH_FILLS = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "trunc_normal_", "orthogonal_"}
TORCH_FILLS |= {"xavier_normal_", "xavier_uniform_", "kaiming_normal_", "kaiming_uniform_"}
TORCH_SEEDS = {"torch.manual_seed", "torch.seed", "torch.initial_seed", "torch.set_rng_state", "torch.get_rng_state"}


def name_of(file: Path) -> str:
    return file.relative_to(SRC).as_posix()


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def count_lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def dotted(node: ast.AST) -> str:
    """Return `torch.cuda.seed` for such an expression, an empty string for what is not a plain dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, module) or (line, module.name) for every import in the tree, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def serialises(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield what would write or read Python objects as such: loading such a file runs code from it."""
    yield from ((line, name) for line, name in imported(tree) if name.split(".")[0] in SERIALISERS)
    for node in ast.walk(tree):
        if dotted(node) in {"torch.save", "torch.load"}:
            yield node.lineno, dotted(node)
        if isinstance(node, ast.keyword) and node.arg in {"weights_only", "allow_pickle"}:
            yield node.value.lineno, node.arg


def is_torch_draw(function: ast.expr) -> bool:
    """Whether calling `function` draws numbers: `torch.randn` and the like, an in-place method, an initialiser."""
    owner, _, name = dotted(function).rpartition(".")
    return (owner == "torch" and name in TORCH_DRAWS) or getattr(function, "attr", "") in TORCH_FILLS


def draws_globally(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield what seeds or draws from a random state that was not handed in."""
    for line, name in imported(tree):
        module = name.split(".")
        if module[0] == "random" or (module[:2] == ["numpy", "random"] and module[-1] not in NUMPY_GENERATORS):
            yield line, name
    for node in ast.walk(tree):
        name = dotted(node)
        if name.startswith(("np.random.", "numpy.random.")) and name.split(".")[2] not in NUMPY_GENERATORS:
            yield node.lineno, name
        if name in TORCH_SEEDS or name.startswith(("torch.random.", "torch.cuda.manual_seed")):
            yield node.lineno, name
        if (
            isinstance(node, ast.Call)
            and is_torch_draw(node.func)
            and "generator" not in {k.arg for k in node.keywords}
        ):
            yield node.lineno, f"{ast.unparse(node.func)} without generator="


def prints(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield calls of `print`: a library speaks through what it returns, its errors and its trackers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) == "print":
            yield node.lineno, "print"


def offences(rule, files: list[Path]) -> list[str]:
    return [f"{name_of(file)}:{line}: {what}" for file in files for line, what in rule(parse(file))]


def run_python(code: str) -> str:
    """Run `code` in a new interpreter that sees only our source and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (serialises, "import pickle", "import json"),
        (serialises, "def f():\n  from cloudpickle import dumps", "from safetensors import torch"),
        (serialises, "torch.load(path)", "safetensors.torch.load(path)"),
        (serialises, "np.load(path, allow_pickle=True)", "np.load(path)"),
        (draws_globally, "import random", "from habilis.core import random"),
        (draws_globally, "np.random.seed(0)", "np.random.default_rng(0)"),
        (draws_globally, "from numpy.random import randint", "from numpy.random import default_rng"),
        (draws_globally, "torch.manual_seed(0)", "torch.Generator('cpu').manual_seed(0)"),
        (draws_globally, "torch.randn(3)", "torch.randn(3, generator=g)"),
        (draws_globally, "x[0].normal_()", "x[0].normal_(generator=g)"),
        (draws_globally, "nn.init.orthogonal_(w)", "nn.init.orthogonal_(w, generator=g)"),
        (prints, "print(1)", "console.print(1)"),
    ],
)
def test_rules_see_what_they_are_for(rule, bad, good):
    assert list(rule(ast.parse(bad)))
    assert not list(rule(ast.parse(good)))


def test_nothing_is_pickled():
    assert offences(serialises, FILES) == []


def test_nothing_draws_from_a_global_random_state():
    assert offences(draws_globally, FILES) == []


def test_only_the_command_line_prints():
    assert offences(prints, [f for f in FILES if not name_of(f).startswith("habilis/cli/")]) == []


def test_functions_are_short():
    functions = [
        (node.end_lineno - node.lineno + 1, f"{name_of(file)}:{node.lineno}: {node.name}")
        for file in FILES
        for node in ast.walk(parse(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [f"{where} has {lines} lines" for lines, where in functions if lines > FUNCTION_LINES] == []


def test_files_are_short():
    too_long = {name_of(f): count_lines(f) for f in FILES if count_lines(f) > FILE_LINES}
    too_long |= {name_of(f): count_lines(f) for f in ALGORITHMS if count_lines(f) > ALGORITHM_LINES}
    assert too_long == {}


def test_every_algorithm_is_understood_in_1200_lines():
    assert {f.stem for f in ALGORITHMS} <= set(READING), "add the new algorithm's files to READING"
    distance = {f.stem: sum(count_lines(SRC / "habilis" / part) for part in READING[f.stem]) for f in ALGORITHMS}
    assert {name: lines for name, lines in distance.items() if lines > READING_LINES} == {}


def test_imports_keep_to_the_floors():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_packages_that_need_no_simulator_import_none():
    """Modules are imported one after the other; the first to bring an outsider in is named."""
    found = run_python(f"""
import importlib, pkgutil, sys
for package in {HEADLESS}:
    root = importlib.import_module(f"habilis.{{package}}")
    for name in [root.__name__, *(m.name for m in pkgutil.walk_packages(root.__path__, root.__name__ + "."))]:
        importlib.import_module(name)
        if brought := sorted(set({OUTSIDERS}) & set(sys.modules)):
            print(name, "imports", *brought)
            sys.exit()
""")
    assert found == ""


def test_importing_habilis_is_quick():
    """`import habilis` only names things: PyTorch is imported when one of them is used."""
    assert run_python("import habilis, sys; print(*({'torch', 'numpy', 'mujoco'} & set(sys.modules)))") == ""
