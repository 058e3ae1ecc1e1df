"""The released procedure, transcribed plainly, as the thing to be faster than.

A causal model with logits; batches in the order of the data; for each text and layer a lag matrix that sums prefixes;
float32 sums; a float32 solve with a pseudo-inverse for each of 19 fractions (`ntps.core.official`).
"""

import torch
from torch import Tensor

from ntps.core import LayerMoments, PooledMoments, official_curve


class ReleasedMoments:
    """Sums of one pass, text by text."""

    def __init__(self, n_layers: int, width: int, n_classes: int) -> None:
        self.M = torch.zeros(n_layers, width, width)
        self.X = torch.zeros(n_layers, width, n_classes)
        self.C0 = torch.zeros(n_layers, width, width)
        self.C1 = torch.zeros(n_layers, width, width)
        self.n = 0

    def update(self, hidden: tuple[Tensor, ...], mask: Tensor, labels: Tensor) -> None:
        """Add a batch: for each text, a lower-triangular lag matrix times its states."""
        for row, length in enumerate(mask.sum(1).tolist()):
            y = torch.nn.functional.one_hot(labels[row], self.X.shape[-1]).float()
            lag = torch.tril(torch.ones(length - 1, length))
            for layer, states in enumerate(hidden):
                h = states[row, :length].float()
                prefix = lag @ h
                self.C0[layer] += prefix.T @ prefix
                self.C1[layer] += prefix.T @ h[1:]
                x = h.mean(0)
                self.M[layer] += torch.outer(x, x)
                self.X[layer] += torch.outer(x, y)
            self.n += 1

    def solve(self) -> list[list[float]]:
        """Return the 19 scores of every layer."""
        zeros, curves = torch.zeros(1), []
        for layer in range(len(self.M)):
            M, X, C0, C1 = (moment[layer] / self.n for moment in (self.M, self.X, self.C0, self.C1))
            pooled = PooledMoments(n=self.n, M=M, X=X, mean_x=zeros, mean_y=zeros, yy=zeros)
            next_token = LayerMoments(layer=layer, C0=C0, C1=C1, n_texts=self.n, n_pairs=1, dtype="float32")
            curves.append(official_curve(pooled, next_token))
        return curves


@torch.inference_mode()
def run(
    model: torch.nn.Module, ids: list[list[int]], labels: Tensor, n_classes: int, batch_size: int = 32
) -> list[list[float]]:
    """Read all texts and solve every layer, end to end."""
    sums = None
    for start in range(0, len(ids), batch_size):
        rows = ids[start : start + batch_size]
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        hidden = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True).hidden_states
        if sums is None:
            sums = ReleasedMoments(len(hidden), hidden[0].shape[-1], n_classes)
        sums.update(hidden, mask, labels[start : start + batch_size])
    assert sums is not None
    return sums.solve()
