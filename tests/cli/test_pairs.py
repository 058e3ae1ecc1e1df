"""Every pair of options of `ntps score` runs, or is refused in one sentence."""

import itertools
import json
import sys

import pytest

from ntps.cli import app as cli
from ntps.models import load_model

pytestmark = pytest.mark.long

WORDS = ["a good film", "a bad film it was", "the dog saw a cat", "she read the old book", "rain in the city ."]
OPTIONS = {
    "pooling": ["--pooling", "last"],
    "prefix": ["--prefix", "mean"],
    "dtype": ["--dtype", "float64"],
    "center": ["--center"],
    "no folds": ["--folds", "0"],
    "folds": ["--folds", "3"],
    "permutations": ["--permutations", "4"],
    "intervals": ["--intervals"],
    "control": ["--control"],
    "k_u": ["--k-u", "3"],
    "k_v": ["--k-v", "2"],
    "official": ["--convention", "official"],
    "rtol": ["--rtol", "1e-9"],
    "float16": ["--state-dtype", "float16"],
    "random": ["--random-weights"],
    "two columns": ["--label-column", "rating", "--label-column", "condition"],
    "probes": ["--probes"],
    "quiet": ["--quiet"],
}
REFUSED = {
    frozenset({"control", "random"}),
    frozenset({"official", "permutations"}),
    frozenset({"official", "intervals"}),
    frozenset({"no folds", "intervals"}),
}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    texts = [f"{WORDS[n % 5]} {WORDS[n // 5 % 5]}{' the' * (n // 25)}" for n in range(30)]  # all different
    rows = [f"{text},{'yes' if n % 5 in (0, 3) else 'no'},{'abc'[n % 3]}" for n, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("pairs") / "reviews.csv"
    path.write_text("text,rating,condition\n" + "\n".join(rows) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def load_once():
    """Models that were loaded before: what is tested is what the options do together."""
    loaded = {}

    def load(name, *, dtype=None, random_weights=False, **options):
        if (dtype, random_weights) not in loaded:
            options |= {"dtype": dtype, "random_weights": random_weights}
            loaded[dtype, random_weights] = load_model(name, **options)
        return loaded[dtype, random_weights]

    return load


@pytest.mark.parametrize("first", OPTIONS)
def test_a_pair_of_options_runs_or_is_refused(first, tiny_gpt2, reviews, load_once, monkeypatch, capsys):
    monkeypatch.setattr("ntps.models.load_model", load_once)
    later = list(OPTIONS)[list(OPTIONS).index(first) + 1 :]
    for pair in [{first, second} for second in later]:
        options = list(itertools.chain.from_iterable(OPTIONS[name] for name in sorted(pair)))
        if "two columns" not in pair:
            options += ["--label-column", "rating"]
        if "probes" not in pair:
            options += ["--no-probes"]  # a second each
        command = ["ntps", "score", str(tiny_gpt2), reviews, "--layers", "-1", "--json", "-", *options]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        if frozenset(pair) in REFUSED:
            assert (end.value.code, out) == (2, ""), pair
            assert len(err.splitlines()) == 1 and err.startswith("ntps: "), pair
        else:
            assert (end.value.code or 0, err) == (0, ""), (pair, err)
            content = json.loads(out)
            assert len(content.get("tasks", [content])) == (2 if "two columns" in pair else 1)
