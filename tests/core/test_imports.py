"""The core needs torch and SciPy's linear algebra only; the package and tasks do not even need torch."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

HEAVY = ("transformers", "pandas", "sklearn", "datasets", "peft", "matplotlib", "accelerate", "scipy.stats")
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == heavy or name.startswith(heavy + ".") for heavy in {heavy!r}):
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
"""
SOLVE = """
import torch
from ntps.core import NextTokenMoments, official_curve, principal_angles, solve_layer
moments = NextTokenMoments(layers=[0], width=5)
pooled = moments.update([torch.randn(40, 6, 5)], torch.ones(40, 6))
numbers = torch.arange(40)
solved = solve_layer(pooled[0], numbers % 3, moments.layer(0), fold_of=numbers % 4)
solved.held_out([1, 2])
solved.without_fold(0)
principal_angles(solved.U.vectors, solved.V.vectors)
official_curve(solved.pooled, solved.next_token)
print(0 <= solved.ntps_at(3, 3) <= 1)
"""


def run(code):
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_core_works_without_anything_else():
    assert run(BLOCK.format(heavy=HEAVY) + SOLVE) == "True"


@pytest.mark.parametrize("statement", ["import ntps", "import ntps.tasks", "from ntps import load_task"])
def test_torch_is_not_imported_before_it_is_needed(statement):
    assert run(BLOCK.format(heavy=("torch", *HEAVY)) + statement) == ""
