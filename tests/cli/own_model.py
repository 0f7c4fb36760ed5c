"""A user's own file with a model, and functions that return something else."""

OWN_MODEL = """
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, before_gate):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.before_gate = before_gate

    def forward(self, x):
        gate = self.before_gate(self.conv(x.mean((2, 3))[:, None])).sigmoid()
        return x * gate.view(*x.shape[:2], 1, 1)


def network():
    ours, other = Attention(nn.Identity()), Attention(nn.GELU())
    first, second = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 1, bias=False)
    model = nn.Sequential(first, other, second, nn.BatchNorm2d(64), ours, nn.ReLU())
    return model, torch.randn(8, 3, 34, 34)


def not_a_pair():
    return 7


def broken():
    return nn.Linear(3, 4), (torch.randn(2, 5),)
"""
