"""`Head`: a linear head on pooled features, initialised with the frozen linear probe or at random."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ntps.scoring.probes import CS, check_features, choose_c, column_scaling, one_thread, quiet_fits


class Head(torch.nn.Module):
    """Linear head in float32: logits = W ((x - mean) * scale) + b.

    Mean and scale are fixed. W is trained in standardised coordinates, so that the few very large channels of
    pretrained models do not dictate the step size of all others. In training a share `dropout` of inputs is dropped.
    """

    def __init__(self, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (n, c) of features (n, d)."""
        inputs = torch.nn.functional.dropout((features - self.mean) * self.scale, self.dropout, self.training)
        return torch.nn.functional.linear(inputs, self.weight, self.bias)

    @torch.no_grad()
    def predict(self, features: Any) -> np.ndarray:
        """Return the class (n,) of each row of features (n, d)."""
        rows = torch.as_tensor(np.asarray(features, dtype=np.float32), device=self.weight.device)
        return self(rows).argmax(1).cpu().numpy()

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Return (weight (c, d), bias (c,)) of the same head on plain features: logits = weight x + bias."""
        weight = self.weight.double() * self.scale.double()
        return weight.float().cpu(), (self.bias.double() - weight @ self.mean.double()).float().cpu()


def random_head(d: int, n_classes: int) -> Head:
    """Return a head on features as they are, drawn as `torch.nn.Linear` is, from torch's global generator."""
    layer = torch.nn.Linear(d, n_classes)
    return Head(layer.weight.detach(), layer.bias.detach(), torch.zeros(d), torch.ones(d))


def fit_head(features: Any, labels: np.ndarray, n_classes: int, *, seed: int = 0) -> Head:
    """Fit the linear probe of `ntps.linear_probe` (standardise, logistic regression, cross-validated C) as a head.

    Args:
        features: (n, d), finite.
        labels: (n,) class indices in [0, n_classes); at least two different.
        n_classes: Number of classes c; a class without texts gets a bias so low that it is never predicted.
        seed: Seed of the folds that choose C.

    Raises:
        NtpsError: If features are not finite, or a single class occurs.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = check_features(features, labels)
    present = np.unique(labels)
    mean, scale = column_scaling(x)
    scaled = ((x - mean) * scale).astype(np.float32)
    with one_thread(), quiet_fits():
        probe = LogisticRegression(C=choose_c(scaled, y, list(CS), seed), tol=1e-4, max_iter=300).fit(scaled, y)
    weights, bias = np.asarray(probe.coef_), np.asarray(probe.intercept_)
    if len(present) == 2:  # scikit-learn gives one row, the log odds of the second class: split it evenly
        weights, bias = np.vstack([-weights / 2, weights / 2]), np.concatenate([-bias / 2, bias / 2])
    all_weights, all_biases = np.zeros((n_classes, x.shape[1])), np.full(n_classes, -20.0)
    all_weights[present], all_biases[present] = weights, bias
    return Head(
        torch.as_tensor(all_weights, dtype=torch.float32),
        torch.as_tensor(all_biases, dtype=torch.float32),
        mean=torch.as_tensor(mean, dtype=torch.float32),
        scale=torch.as_tensor(scale, dtype=torch.float32),
    )
