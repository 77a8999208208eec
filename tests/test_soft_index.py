"""A soft index is the integer at the corners of the simplex, and the mixture of the integers' results inside."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from pyro.ops.indexing import Vindex

from pyro_discrete import SoftIndex

torch.manual_seed(0)
K = 3
Z, Y = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 1]]), torch.tensor([[1, 0], [2, 2], [0, 1], [1, 1]])
TABLES = {
    "v": torch.randn(3, dtype=torch.float64),
    "m": torch.randn(3, 3, dtype=torch.float64),
    "w": torch.randn(3, 5, dtype=torch.float64),
    "b": torch.randn(4, 3, 5, dtype=torch.float64),
    "c": torch.randn(4, 2, 3, 5, dtype=torch.float64),
    "x": torch.randn(4, 2, dtype=torch.float64),
    "codes": torch.tensor([2, 0, 1]),
    "words": torch.arange(12).reshape(3, 4),
}
NAMES = {"torch": torch, "F": F, "Vindex": Vindex}

# each result is linear in every element of z and of y
MIXED = [
    "v[z]",
    "m[z]",
    "m[:, z]",
    "m[..., z]",
    "m[z, 1]",
    "m[1, z]",
    "m[z, y]",
    "m[y, z]",
    "m[z][..., y]",
    "m[z, z]",
    "m[z[0], y[0]]",
    "m[z[0, 0]]",
    "m[z[0, 0], :]",
    "m[:, z[0, 1]]",
    "m[z[0, 0], y[0, 0]]",
    "m[None, z]",
    "w[z, :]",
    "w[z, 1:3]",
    "w[z[:, None], torch.tensor([0, 1])]",
    "w[z.unsqueeze(-1), torch.arange(5)]",
    "b[:, z[:, 0]]",
    "b[torch.arange(4), z[:, 0]]",
    "b[torch.arange(4), z[:, 0], :2]",
    "b[0, :, :3][z]",
    "c[torch.arange(4)[:, None], torch.arange(2), z]",
    "c[:, 0, z[:, 0], torch.arange(4)]",
    "c[:, :, z[0, 0], y[0, 0]]",
    "c[:, torch.tensor([0, 1]), z[0, 1], :]",
    "Vindex(c)[..., z, :]",
    "Vindex(b)[..., z[:, 0], :]",
    "Vindex(m)[..., z, y]",
    "Vindex(m)[z, y]",
    "v[codes[z]]",
    "v[words[:, 1:2][z] % 3]",
    "F.embedding(z, w)",
    "torch.nn.Embedding.from_pretrained(w)(z)",
    "F.embedding(z, w, padding_idx=0)",
    "torch.gather(b[:, :, 0], 1, z)",
    "b[:, :, 0].gather(-1, z)",
    "torch.gather(m, 0, z[:3])",
    "torch.take_along_dim(b[:, :, 0], z, 1)",
    "torch.take_along_dim(b, z[:, :1].unsqueeze(-1), 1)",
    "torch.take(m, z)",
    "m.take(z * 3 + y)",
    "torch.index_select(w, 0, z[:, 0])",
    "w.index_select(0, z[0])",
    "F.one_hot(z, 3).double()",
    "F.one_hot(z, 5).double()",
    "F.one_hot(z).double()",
    "(z == 1).double()",
    "(z != 2).double()",
    "(z < 2).double()",
    "(1 <= z).double()",
    "((z == 1) | (z == 2)).double()",
    "((z == 1) & (y == 1)).double()",
    "(~(z == 1)).double()",
    "(z == y).double()",
    "(z + y).double()",
    "(1 - z).double()",
    "(z % 2).double()",
    "(z // 2).double()",
    "z / 2",
    "(2 ** z).double()",
    "(z ** 2).double()",
    "x ** z",
    "0.5 * z.double()",
    "x * z",
    "x + z",
    "x - z",
    "(x > z).double()",
    "z.double()",
    "z.to(torch.float64)",
    "z.type_as(x)",
    "z.clamp(max=1).double()",
    "(z * y).double()",
    "torch.where(z == 1, x, -x)",
    "torch.where(z == 1, x, 0.0)",
    "torch.where(x > 0, z, y).double()",
    "torch.where(x > 0, z, 0).double()",
    "torch.where(z == 0, 2, y).double()",
    "z.sum(-1).double()",
    "(z == 1).sum(-1).double()",
    "z.double().mean()",
    "(z == 1).any(-1).double()",
    "(z == 1).all(-1).double()",
    "z.cumsum(0).double()",
    "codes.double()[z]",
    "(z.bool() * x)",
    "torch.lgamma(z + 1)",
    "torch.stack([z, y], -1).double()",
    "torch.cat([z, Z]).double()",
    "torch.cat([z, x])",
    "torch.maximum(z, torch.tensor(1)).double()",
    "torch.distributions.Categorical(m.exp()).log_prob(z[:3, 0])",
    "torch.isin(z, torch.tensor([0, 2])).double()",
]

# the value is what the integer gives, moved or joined
MOVED = [
    "z.long()",
    "z.view(-1, 2)",
    "z.reshape(2, 2, 2)",
    "z.unsqueeze(-1)",
    "z.unsqueeze(0)",
    "z.squeeze()",
    "z[:1].squeeze(0)",
    "z.expand(3, 4, 2)",
    "z.expand_as(torch.zeros(3, 4, 2))",
    "z.t()",
    "z.T",
    "z.permute(1, 0)",
    "z.transpose(0, -1)",
    "z.movedim(0, 1)",
    "z.flatten()",
    "z.repeat(2, 1)",
    "z.repeat_interleave(2, 0)",
    "z.flip(0)",
    "z.roll(1, 0)",
    "z[0]",
    "z[..., 0]",
    "z[:, None]",
    "z[1:3, 0]",
    "z[torch.tensor([0, 2])]",
    "z[torch.tensor([True, False, True, True])]",
    "z.select(1, 0)",
    "z.unbind(-1)[1]",
    "list(z)[2]",
    "z.split(1, -1)[1]",
    "z.chunk(2)[0]",
    "torch.stack([z, y])",
    "torch.stack([z, Z])",
    "torch.cat([z, y], -1)",
    "torch.where(z == 0, y, z)",
    "torch.zeros_like(z)",
    "torch.ones_like(z, dtype=torch.float64)",
    "z.new_zeros(3)",
    "words[z]",
    "words[:, z[0]]",
    "torch.arange(6)[z * 2]",
    "torch.broadcast_tensors(z.unsqueeze(-1), torch.zeros(5))[0]",
    "z.detach()",
    "z.clone()",
    "z.contiguous()",
    "z == 1",
    "z + y",
    "torch.minimum(z, y)",
    "z.bool()",
    "(z == 1).any(-1)",
]


def one_hot(z):
    return SoftIndex(F.one_hot(z, K).double(), site="z")


def value(expression, z, y):
    return eval(expression, {**NAMES, **TABLES, "z": z, "y": y, "Z": Z})


@pytest.mark.parametrize("expression", [*MIXED, *MOVED])
def test_at_the_corners_it_is_the_integer(expression):
    expected, found = value(expression, Z, Y), value(expression, one_hot(Z), one_hot(Y))
    assert found.shape == expected.shape
    if isinstance(found, SoftIndex):
        assert found.dtype == expected.dtype
        found = found.hard()
    elif expected.is_floating_point():
        assert found.dtype == expected.dtype
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=1e-6)


def soft_weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(4, 2, K, dtype=torch.float64, generator=generator).softmax(-1).requires_grad_()


def joint(expression, w, u):
    """The mixture over every assignment of the elements of z and y that the expression reads."""
    read = [(t, i) for t in "zy" for i in range(8) if depends(expression, t, i)]
    total = 0.0
    for assignment in itertools.product(range(K), repeat=len(read)):
        z, y, chance = Z.clone(), Y.clone(), torch.ones((), dtype=torch.float64)
        for (t, i), k in zip(read, assignment, strict=True):
            (z if t == "z" else y).view(-1)[i] = k
            chance = chance * (w if t == "z" else u).reshape(8, K)[i, k]
        total = total + chance * value(expression, z, y)
    return total


def depends(expression, which, i):
    """Whether a result changes with an element of z or y, whatever the others are."""
    for z0, y0 in ((Z, Y), *((torch.full_like(Z, k), torch.full_like(Z, k)) for k in range(K))):
        results = []
        for k in range(K):
            z, y = z0.clone(), y0.clone()
            (z if which == "z" else y).view(-1)[i] = k
            results.append(value(expression, z, y))
        if not all(torch.equal(r, results[0]) for r in results):
            return True
    return False


@pytest.mark.parametrize("expression", MIXED)
def test_inside_it_is_the_mixture_with_its_gradient(expression):
    """Of one number of the result, which depends on few elements."""
    w, u = soft_weights(1), soft_weights(2)
    found = value(expression, SoftIndex(w, site="z"), SoftIndex(u, site="y"))
    place = "[" + ", ".join("0" for _ in found.shape) + "]" if found.dim() else ""
    expected = joint(f"({expression}){place}", w, u)
    found = found[(0,) * found.dim()]
    torch.testing.assert_close(found, torch.as_tensor(expected).to(found.dtype), rtol=1e-6, atol=1e-7)
    gradients = [
        torch.autograd.grad(each, (w, u), allow_unused=True) if torch.as_tensor(each).requires_grad else (None, None)
        for each in (found, expected)
    ]
    for mine, right in zip(*gradients, strict=True):
        zero = torch.zeros(4, 2, K, dtype=torch.float64)
        mine, right = (tangent(zero if g is None else g) for g in (mine, right))
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-6)


def tangent(gradient):
    """The part of a gradient along the simplex: off it, products of weights may be written in several ways."""
    return gradient - gradient.mean(-1, keepdim=True)
