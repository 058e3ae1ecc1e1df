"""What tensors take, counted exactly."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Account(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, and of those of them that live at the same time."""

    def __init__(self):
        super().__init__()
        self.live, self.foreign, self.now, self.peak = {}, set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.foreign |= {key for key, _ in self.storages((args, kwargs)) if key not in self.live}
        result = function(*args, **(kwargs or {}))
        for key, storage in self.storages(result):
            if key not in self.live and key not in self.foreign:
                self.live[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, key)
        return result

    @staticmethod
    def storages(tree):
        tensors = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        return [(storage._cdata, storage) for storage in tensors]

    def gone(self, key):
        self.now -= self.live.pop(key)
