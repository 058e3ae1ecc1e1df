"""Mean-pooled hidden states of every text, for what moments do not hold: shuffled labels, probes, other measures."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntps._files import atomic_path
from ntps.errors import NtpsError, one_of

DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Features:
    """Mean-pooled hidden states.

    Attributes:
        values: (S, n, d) float32, or float16 where half the memory was asked for: S layers, n texts in the task's
            order.
        labels: (n,) class indices.
        layers: The layer number of each entry of the stack.
        kept: (n,) the place in the task of each text; texts without tokens are left out.
        folds: (n,) the fold of each text, or `None`.
    """

    values: np.ndarray
    labels: np.ndarray
    layers: tuple[int, ...]
    kept: np.ndarray
    folds: np.ndarray | None

    def layer(self, layer: int) -> np.ndarray:
        """Return (n, d) features of one layer.

        Raises:
            NtpsError: If the layer is not among them.
        """
        one_of(layer, self.layers, "layer")
        return self.values[self.layers.index(layer)]

    def save(self, path: str | Path, *, key: str) -> Path:
        """Write a safetensors file, atomically, under a key that names the pass; return its path.

        Raises:
            NtpsError: If the file cannot be written.
        """
        from safetensors.numpy import save_file

        arrays = {"values": self.values, "labels": self.labels, "kept": self.kept}
        if self.folds is not None:
            arrays["folds"] = self.folds
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        header = {"format": "ntps-features", "key": key, "layers": json.dumps(self.layers)}
        with atomic_path(path) as temporary:
            try:
                save_file(arrays, temporary, {**header, "sha256": _digest(arrays, header)})
            except Exception as error:  # safetensors wraps a full disk in an error of its own
                raise NtpsError(f"cannot write {path}: {error}.") from error
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, *, key: str) -> "Features | None":
        """Read features that `save` wrote under this key; `None` where there are none, or those of another pass.

        Raises:
            NtpsError: If the file is damaged.
        """
        from safetensors import safe_open

        if not Path(path).is_file():
            return None
        try:
            with safe_open(path, "np") as file:
                header: dict[str, Any] = dict(file.metadata() or {})
                arrays = {name: file.get_tensor(name) for name in list(file.keys())}
        except Exception as error:
            raise NtpsError(f"{path} is damaged or no safetensors file ({error}); collect it again.") from error
        digest = header.pop("sha256", None)
        if header.get("format") != "ntps-features" or digest != _digest(arrays, header):
            raise NtpsError(f"{path} is damaged (its checksum does not fit its content); collect the features again.")
        if header["key"] != key:
            return None
        layers = tuple(json.loads(header["layers"]))
        return cls(arrays["values"], arrays["labels"], layers, arrays["kept"], arrays.get("folds"))


def _digest(arrays: dict[str, np.ndarray], header: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()
