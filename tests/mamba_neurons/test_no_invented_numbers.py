"""Not one number may come from anywhere but the model: where the study may draw at random, and
nowhere else.
"""

import ast
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "packages" / "mamba_neurons"
FILES = sorted(STUDY.glob("*.py"))

# Function -> what it draws. Texts, samples, label draws, resamples and nulls; no result.
MAY_DRAW = {
    "load_texts": "rows of repeated random tokens",
    "drawn_labels": "labels from the model's own predictions",
    "whole_model": "the seed of the label draws",
    "fisher_order": "the seed of the label draws",
    "calibrate": "the sample of neurons that estimates are checked on",
    "delta_layer": "bootstrap rows",
    "explained_null": "null: groups dealt to kinds",
    "split_half_share": "random halves",
    "_lifetime": "bootstrap weights of groups",
    "joint_order": "the seed of the label draws",
    "cross_layer": "null: random neurons",
    "faithfulness": "null: random orders",
    "random_order": "null: random orders",
    "relative": "bootstrap weights of texts",
}
DRAWS = {
    *(
        "rand",
        "randn",
        "randint",
        "randperm",
        "multinomial",
        "bernoulli",
        "normal_",
        "uniform_",
        "rand_like",
    ),
    *(
        "randn_like",
        "normal",
        "uniform",
        "random",
        "integers",
        "choice",
        "permutation",
        "permuted",
        "shuffle",
    ),
    *(
        "standard_normal",
        "default_rng",
        "manual_seed",
        "exponential",
        "poisson",
        "binomial",
        "seed",
    ),
}


def draws_in(tree: ast.AST) -> set[str]:
    """Calls of random functions in a piece of code: of torch, of numpy, of a generator."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {call.attr for call in calls if isinstance(call, ast.Attribute) and call.attr in DRAWS}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_only_sampling_bootstrap_and_nulls_draw_at_random(file: Path) -> None:
    tree = ast.parse(file.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inner = {
        id(child)
        for f in functions
        for child in ast.walk(f)
        if child is not f and isinstance(child, ast.FunctionDef)
    }
    for function in functions:
        if id(function) not in inner and (found := draws_in(function)):
            assert function.name in MAY_DRAW, f"{file.name}: {function.name} calls {sorted(found)}"
    for function in functions:
        for child in list(function.body):
            function.body.remove(child)
    assert not draws_in(tree), f"{file.name} draws at random outside functions"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_is_measured_with_a_generator_that_nobody_seeded(file: Path) -> None:
    text = file.read_text()
    assert "np.random.seed" not in text
    assert "import random" not in text
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "default_rng"
        ):
            assert node.args, f"{file.name}: a generator without a seed"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "torch.randn",
            "torch.rand",
            "torch.randn_like",
        ):
            pytest.fail(f"{file.name}: {ast.unparse(node)}")


def test_every_exception_still_exists() -> None:
    defined = {
        n.name
        for f in FILES
        for n in ast.walk(ast.parse(f.read_text()))
        if isinstance(n, ast.FunctionDef)
    }
    assert set(MAY_DRAW) <= defined
