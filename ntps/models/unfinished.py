"""A pass that is not finished: what is done lies beside its result to come, so that a kill loses minutes, not hours.

Two files: pooled states, chunk after chunk in the order in which texts are read, and the sums over these texts with a
digest of each chunk. The second is replaced atomically once a chunk is written, so what it names is there.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from ntps._files import load_tensors, save_tensors, sha256_json, sweep
from ntps.core import NextTokenMoments
from ntps.errors import NtpsError

KIND = "ntps-unfinished-pass-1"
CHUNK_SECONDS = 60.0
_SHARE = 20  # a chunk takes at least this many times what keeping the last one took
_BLOCK = 1 << 22  # bytes of pooled states that are gathered at a time

logger = logging.getLogger(__name__)


class Unfinished:
    """What a process has done of a pass, kept now and then in a folder.

    Args:
        folder: The folder of the result.
        key: That of the pass.
        rows: Row of each text that this process reads among the pooled states, in the order in which it reads them.
        rank: Number of this process.
    """

    def __init__(self, folder: Path, key: str, rows: np.ndarray, rank: int) -> None:
        self.key = sha256_json({"pass": key, "rows": hashlib.sha256(rows.tobytes()).hexdigest()})
        self.rows = rows
        self.sums, self.states = (folder / f"unfinished-{rank}.{ending}" for ending in ("safetensors", "states"))
        self.chunks: list[tuple[int, str]] = []  # number of texts done after each chunk, and its digest
        self.last, self.cost = time.monotonic(), 0.0

    @property
    def done(self) -> int:
        """Number of texts whose states and sums are kept."""
        return self.chunks[-1][0] if self.chunks else 0

    @property
    def due(self) -> bool:
        """Whether it is time to keep what has been done since."""
        return time.monotonic() - self.last >= max(CHUNK_SECONDS, _SHARE * self.cost)

    def resume(self, states: np.ndarray, moments: NextTokenMoments | None) -> None:
        """Fill in pooled states (S, n, d) and sums with what an earlier run of the same pass kept, if it is whole."""
        sweep(self.sums.parent)
        if not self.sums.is_file():
            return
        try:
            kept, header = load_tensors(self.sums, KIND)
            if header["key"] != self.key:
                return
            self._read(states, header["chunks"])
            sums = _tensors(moments)
            if {name: tensor.shape for name, tensor in sums.items()} != {name: kept[name].shape for name in kept}:
                raise ValueError("its sums are those of another pass")
            for name, tensor in sums.items():
                tensor.copy_(kept[name])
        except (NtpsError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
            logger.warning("%s is damaged (%s). The pass begins anew.", self.sums, error)
            return
        self.chunks = [(int(stop), str(digest)) for stop, digest in header["chunks"]]
        logger.info("%d of %d texts were read before; the pass goes on from there.", self.done, len(self.rows))

    def keep(self, states: np.ndarray, moments: NextTokenMoments | None, done: int) -> None:
        """Write what has been done since the last chunk.

        Args:
            states: (S, n, d) pooled states.
            moments: Sums over the texts that are done.
            done: Number of those texts.

        Raises:
            NtpsError: If it cannot be written; what was kept before is still there.
        """
        began, digest = time.monotonic(), hashlib.sha256()
        try:
            self.states.parent.mkdir(parents=True, exist_ok=True)
            with self.states.open("r+b" if self.chunks else "wb") as file:
                file.seek(self.done * states.shape[0] * states.shape[2] * states.itemsize)  # over what has no sums
                for rows in _blocks(self.rows[self.done : done], states):
                    block = np.ascontiguousarray(states[:, rows])
                    file.write(block.data)
                    digest.update(block.data)
        except OSError as error:
            raise NtpsError(f"cannot write {self.states}: {error.strerror or error}.") from error
        self.chunks.append((done, digest.hexdigest()))
        save_tensors(self.sums, _tensors(moments), {"kind": KIND, "key": self.key, "chunks": self.chunks})
        self.last = time.monotonic()
        self.cost = self.last - began

    def remove(self) -> None:
        """Remove the files, once the result is there."""
        for path in (self.sums, self.states):
            path.unlink(missing_ok=True)

    def _read(self, states: np.ndarray, chunks: list[tuple[int, str]]) -> None:
        """Fill in the states of all chunks.

        Raises:
            ValueError: If one is not what was written.
        """
        start = 0
        with self.states.open("rb") as file:
            for stop, expected in chunks:
                digest = hashlib.sha256()
                for rows in _blocks(self.rows[start:stop], states):
                    block = np.empty((states.shape[0], len(rows), states.shape[2]), dtype=states.dtype)
                    file.readinto(block.data)
                    digest.update(block.data)
                    states[:, rows] = block
                if digest.hexdigest() != expected:
                    raise ValueError(f"the checksum of texts {start} to {stop} does not match {self.states}")
                start = stop


def _tensors(moments: NextTokenMoments | None) -> dict[str, Tensor]:
    """Return the tensors of sums by name."""
    if moments is None:
        return {}
    return {"past_gram": moments.past_gram, "cross": moments.cross, "counts": moments.counts}


def _blocks(rows: np.ndarray, states: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows of which the states take a block of memory."""
    step = max(1, _BLOCK // (states.shape[0] * states.shape[2] * states.itemsize))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
