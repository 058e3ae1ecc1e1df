"""Moments: the sums over texts from which every score is solved, frozen, with a view of each layer and fold.

Sums add: over batches, machines and folds, in any order. Nothing here knows of models or texts; only torch is needed.

Notation (the paper's, with h_t the hidden state of token t and s_t = h_1 + ... + h_t its prefix sum):

| sum | symbol | shape | per text |
|---|---|---|---|
| `xx` | M | (d, d) | x x^T, x = s_L / L the mean-pooled state |
| `xy` | X | (d, c) | x y^T, y the one-hot label or real target |
| `ss` | C0 | (d, d) | sum_{t<L} s_t s_t^T |
| `sh` | C1 | (d, d) | sum_{t<L} s_t h_{t+1}^T |
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ntps._files import atomic_path
from ntps.errors import NtpsError, in_range

FORMAT_VERSION = 1
PREFIXES = ("sum", "mean", "last")
# Sums from different runs may be added only where these agree.
MUST_MATCH = ("model_fingerprint", "dtype", "classes", "max_length")


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """One layer's moments: float64 CPU tensors, means over texts. `C0`, `C1` are `None` in a fold's view without them.

    Attributes: `M` (d, d), `X` (d, c), `C0` (d, d), `C1` (d, d), `mean_x` (d,), `mean_y` (c,), `yy` (c, c), `n` texts,
    `n_pairs` pairs of a past and a next token.
    """

    layer: int
    n: int
    n_pairs: int
    M: Tensor
    X: Tensor
    mean_x: Tensor
    mean_y: Tensor
    yy: Tensor
    C0: Tensor | None = None
    C1: Tensor | None = None
    prefix_dtype: str = "float64"

    @property
    def d(self) -> int:
        """Width of a hidden state."""
        return self.M.shape[0]

    def centered(self, mean_x: Tensor | None = None, mean_y: Tensor | None = None) -> "LayerMoments":
        """Return moments about the means (or about the means given, those of training folds for instance).

        C0 and C1 stay as they are: V is the paper's, of the uncentred sums.
        """
        own_x, own_y = self.mean_x, self.mean_y
        a, b = (own_x if mean_x is None else mean_x), (own_y if mean_y is None else mean_y)
        M = self.M - torch.outer(own_x, a) - torch.outer(a, own_x) + torch.outer(a, a)
        X = self.X - torch.outer(own_x, b) - torch.outer(a, own_y) + torch.outer(a, b)
        yy = self.yy - torch.outer(own_y, b) - torch.outer(b, own_y) + torch.outer(b, b)
        return LayerMoments(
            self.layer, self.n, self.n_pairs, M, X, own_x - a, own_y - b, yy, self.C0, self.C1, self.prefix_dtype
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over texts for a stack of layers; add them, view a layer or a fold, save and load them.

    Memory: as `ntps.core.accumulator.MomentAccumulator` says, on the CPU.

    Attributes:
        sums: Named float64 tensors; the leading axis of the pooled ones is the fold.
        layers: Layer numbers of the stack.
        prefix: `"sum"`, `"mean"` or `"last"`.
        n_folds: Number of folds, 0 for none.
        metadata: What made the sums (model, revision, dtype, task fingerprint, settings, package version): JSON values.
    """

    sums: dict[str, Tensor]
    layers: tuple[int, ...]
    prefix: str = "sum"
    n_folds: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """The width d of a hidden state."""
        return self.sums["xx"].shape[-1]

    @property
    def n_targets(self) -> int:
        """The number c of classes or targets."""
        return self.sums["y"].shape[-1]

    @property
    def n_texts(self) -> int:
        """Texts that were added."""
        return int(self.sums["counts"][0].sum())

    @property
    def n_tokens(self) -> int:
        """Tokens of those texts."""
        return int(self.sums["counts"][1].sum())

    def _place(self, layer: int) -> int:
        if layer not in self.layers:
            raise NtpsError(f"layer {layer} is not among these moments; there are {', '.join(map(str, self.layers))}.")
        return self.layers.index(layer)

    def _view(self, layer: int, pooled: list[int], prefixed: list[int]) -> LayerMoments:
        place, sums = self._place(layer), self.sums
        n = float(sums["counts"][0, pooled].sum())
        if n == 0:
            raise NtpsError("no text lies in these folds; use fewer folds or more texts.")
        whole = len(prefixed) == len(sums["ss"])
        n_prefix = float(sums["counts"][0].sum()) if whole else n
        return LayerMoments(
            layer=layer,
            n=int(n),
            n_pairs=int(sums["counts"][2].sum() if whole else sums["counts"][2, pooled].sum()),
            M=sums["xx"][pooled, place].sum(0) / n,
            X=sums["xy"][pooled, place].sum(0) / n,
            mean_x=sums["x"][pooled, place].sum(0) / n,
            mean_y=sums["y"][pooled].sum(0) / n,
            yy=sums["yy"][pooled].sum(0) / n,
            C0=sums["ss"][prefixed, place].sum(0) / n_prefix if prefixed else None,
            C1=sums["sh"][prefixed, place].sum(0) / n_prefix if prefixed else None,
            prefix_dtype=self.metadata.get("accumulate_dtype", "float64"),
        )

    def layer(self, layer: int) -> LayerMoments:
        """Return one layer's moments over all texts.

        Raises:
            NtpsError: If the layer is not among them.
        """
        return self._view(layer, list(range(len(self.sums["xx"]))), list(range(len(self.sums["ss"]))))

    def fold(self, layer: int, fold: int) -> LayerMoments:
        """Return one layer's moments over the texts of one fold (C0 and C1 only when kept per fold)."""
        self._check_fold(fold)
        return self._view(layer, [fold], [fold] if self.has_fold_prefix else [])

    def without_fold(self, layer: int, fold: int) -> LayerMoments:
        """Return one layer's moments over the texts outside one fold (C0 and C1 only when kept per fold)."""
        self._check_fold(fold)
        others = [other for other in range(self.n_folds) if other != fold]
        return self._view(layer, others, others if self.has_fold_prefix else [])

    def _check_fold(self, fold: int) -> None:
        if self.n_folds == 0:
            raise NtpsError("these moments have no folds; collect them with folds=K.")
        in_range(fold, 0, self.n_folds - 1, "fold")

    @property
    def has_fold_prefix(self) -> bool:
        """Whether C0 and C1 are kept per fold."""
        return self.n_folds > 0 and len(self.sums["ss"]) == self.n_folds

    def identity_residual(self, layer: int) -> float:
        """Relative residual of C1 + C1^T = E[s_L s_L^T] - E[sum_t h_t h_t^T]; rounding only, if all is well.

        Uses the whole matrices when they were kept (`token_gram=True`), else their diagonals.

        Raises:
            NtpsError: If the prefix is not the sum, for which alone the identity holds.
        """
        if self.prefix != "sum":
            raise NtpsError(f"the identity holds for prefix 'sum'; these moments have prefix {self.prefix!r}.")
        place = self._place(layer)
        cross = self.sums["sh"][:, place].sum(0)
        if "token_gram" in self.sums:
            left = cross + cross.T
            last, tokens = self.sums["last_gram"][place], self.sums["token_gram"][place]
        else:
            left = 2 * cross.diagonal()
            last, tokens = self.sums["last_squares"][place], self.sums["token_squares"][place]
        scale = (last.abs() + tokens.abs()).max().clamp_min(torch.finfo(torch.float64).tiny)
        return float((left - (last - tokens)).abs().max() / scale)

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of texts together.

        Raises:
            NtpsError: If they do not match in layers, widths, targets, prefix, folds, or what made them.
        """
        if not isinstance(other, Moments):
            return NotImplemented
        pairs = [
            ("layers", self.layers, other.layers),
            ("width", self.width, other.width),
            ("number of targets", self.n_targets, other.n_targets),
            ("prefix", self.prefix, other.prefix),
            ("number of folds", self.n_folds, other.n_folds),
            ("kept sums", sorted(self.sums), sorted(other.sums)),
            ("C0 and C1 per fold", self.has_fold_prefix, other.has_fold_prefix),
            *((key, self.metadata.get(key), other.metadata.get(key)) for key in MUST_MATCH),
        ]
        for what, mine, theirs in pairs:
            if mine != theirs:
                raise NtpsError(f"these moments do not match: {what} is {mine} in one and {theirs} in the other.")
        metadata = {key: value for key, value in self.metadata.items() if key != "key"}  # it names one pass
        for count in {"n_skipped", "n_truncated"} & (self.metadata.keys() | other.metadata.keys()):
            metadata[count] = self.metadata.get(count, 0) + other.metadata.get(count, 0)
        if "float32" in {m.metadata.get("accumulate_dtype") for m in (self, other)}:
            metadata["accumulate_dtype"] = "float32"  # a sum is as exact as its coarser term
        fingerprints = [m.metadata.get("task_fingerprint") for m in (self, other)]
        if fingerprints[0] != fingerprints[1]:
            metadata["task_fingerprint"] = "+".join(str(fingerprint) for fingerprint in fingerprints)
        total = {name: value + other.sums[name] for name, value in self.sums.items()}
        return Moments(total, self.layers, self.prefix, self.n_folds, metadata)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, atomically, with the metadata and a checksum; return its path.

        Raises:
            NtpsError: If the file cannot be written.
        """
        from safetensors.torch import save_file

        sums = {name: value.contiguous() for name, value in self.sums.items()}
        header = {
            "format": "ntps-moments",
            "format_version": FORMAT_VERSION,
            "layers": self.layers,
            "prefix": self.prefix,
            "n_folds": self.n_folds,
            "metadata": self.metadata,
        }
        with atomic_path(path) as temporary:
            try:
                strings = {key: json.dumps(value) for key, value in header.items()}
                save_file(sums, temporary, {**strings, "sha256": _digest(sums, strings)})
            except Exception as error:  # safetensors wraps a full disk in an error of its own
                raise NtpsError(f"cannot write {path}: {error}.") from error
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Moments":
        """Read moments that `save` wrote.

        Raises:
            NtpsError: If the file is missing, damaged, no moments file, or of another format version.
        """
        from safetensors import safe_open

        if not Path(path).is_file():
            raise NtpsError(f"{path}: no such file.")
        try:
            with safe_open(path, "pt") as file:
                raw = file.metadata() or {}
                sums = {name: file.get_tensor(name) for name in list(file.keys())}
        except Exception as error:
            raise NtpsError(f"{path} is damaged or no safetensors file ({error}); collect it again.") from error
        if raw.get("format") != '"ntps-moments"':
            raise NtpsError(f"{path} is a safetensors file, but holds no ntps moments.")
        version = raw.get("format_version")
        if version != str(FORMAT_VERSION):
            raise NtpsError(
                f"{path} has moments format {version}, but this version of ntps reads {FORMAT_VERSION}; collect it "
                "again."
            )
        strings = {key: value for key, value in raw.items() if key != "sha256"}
        if raw.get("sha256") != _digest(sums, strings):
            raise NtpsError(f"{path} is damaged (its checksum does not fit its content); collect the moments again.")
        header = {key: json.loads(value) for key, value in strings.items()}
        return cls(sums, tuple(header["layers"]), header["prefix"], header["n_folds"], header["metadata"])


def _digest(sums: dict[str, Tensor], strings: dict[str, str]) -> str:
    """Return a checksum of everything in the file: names, types, shapes and bytes of the sums, and the header."""
    digest = hashlib.sha256()
    for name in sorted(sums):
        digest.update(f"{name}{sums[name].dtype}{tuple(sums[name].shape)}".encode())
        digest.update(sums[name].contiguous().numpy().data)
    digest.update(json.dumps(strings, sort_keys=True).encode())
    return digest.hexdigest()
