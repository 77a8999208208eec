"""A soft index is the integer at the corners of the simplex, and the mixture of the integers' results inside.

Behind that, its limits: what it refuses, and how it is captured, traced, cast, copied and saved.
"""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from pyro.ops.indexing import Vindex
from pyro.ops.provenance import ProvenanceTensor, get_provenance, track_provenance
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_discrete import SoftIndex
from pyro_discrete.errors import RelaxationError
from pyro_discrete.relaxations.soft_index import SoftBit

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


# Its limits


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("int(z[0, 0])", "torch.where"),
        ("1 if z[0, 0] == 1 else 0", "torch.where"),
        ("z[0, 0].item()", "torch.where"),
        ("z.tolist()", "table"),
        ("z.numpy()", "NumPy"),
        ("x[z == 1]", "torch.where"),
        ("x.masked_fill(z == 1, 0.0)", "torch.where"),
        ("torch.zeros(4, 2, 3).scatter(-1, z.unsqueeze(-1), 1.0)", "F.one_hot"),
        ("torch.zeros(4, 2).copy_(z)", "torch.stack"),
        ("range(z[0, 0])", "torch.where"),
        ("torch.select(x, 0, z[0, 0])", "torch.where"),
        ("x.narrow(0, z[0, 0], 1)", "torch.where"),
        ("x.repeat(z[0, 0], 1)", "torch.where"),
        ("x.repeat_interleave(z[0, 0], 0)", "torch.where"),
        ("x[0].repeat_interleave(z[0])", "torch.where"),
        ("x[[z[0]]]", r"x\[z\]"),
        ("torch.add(z, 1, out=torch.zeros(4, 2, dtype=torch.long))", "torch.stack"),
        ("z.add_(1)", "torch.stack"),
        ("z.sort()", "table"),
        ("torch.bincount(z.flatten())", "F.one_hot"),
        ("z[z]", "one_hot"),
        ("z @ z.T", "table"),
        ("F.embedding(z, w, max_norm=1.0)", "max_norm"),
        ("(40 * z + 30 * y + 1) * (z + 64 * y)", "combinations"),
    ],
)
def test_what_cannot_be_relaxed_is_refused_by_name(expression, said):
    z, y = (SoftIndex(soft_weights(s).detach(), site=n) for s, n in ((1, "cluster"), (2, "topic")))
    if "combinations" in said:
        z, y = (SoftIndex(torch.full((4, 2, 70), 1 / 70), site=n) for n in ("cluster", "topic"))
        expression = "z + y"
    with pytest.raises(RelaxationError, match="'cluster'.*" + said + ".*rloo") as caught:
        value(expression, z, y)
    assert " of it is not defined" in str(caught.value)


def test_writing_into_a_tensor_is_refused():
    z, x = SoftIndex(soft_weights(1).detach(), site="cluster"), torch.zeros(4, 2)
    with pytest.raises(RelaxationError, match=r"'cluster'.*torch\.stack"):
        x[:, 0] = z[:, 0]


def test_hard_forward_gives_the_very_row_and_a_gradient():
    soft = soft_weights(3)
    hard = F.one_hot(soft.argmax(-1), K).double()
    z = SoftIndex(hard + (soft - soft.detach()))
    row = TABLES["w"][z]
    assert torch.equal(row, TABLES["w"][soft.argmax(-1)])
    row.sum().backward()
    assert soft.grad.abs().sum() > 0


def test_under_autocast_a_table_keeps_its_dtype_and_precision():
    z = one_hot(Z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        row = TABLES["w"].float()[z]
    assert row.dtype == torch.float32
    assert torch.equal(row, TABLES["w"].float()[Z])


def test_a_table_with_infinities_is_mixed_without_nan():
    table = torch.tensor([0.0, -torch.inf, 1.0], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([[0.4, 0.0, 0.6], [1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    out = table[SoftIndex(w)]
    torch.testing.assert_close(out, torch.tensor([0.6, 0.0], dtype=torch.float64))
    out.sum().backward()
    assert w.grad.isfinite().all()
    assert table.grad.isfinite().all()


@pytest.mark.parametrize(
    "expression", ["w[z, :]", "Vindex(c)[..., z, :]", "F.one_hot(z, 5).double()", "m[z, y] * (z == y)"]
)
def test_make_fx_captures_it(expression):
    def program(w, u):
        return value(expression, SoftIndex(w), SoftIndex(u))

    w, u = (soft_weights(s).detach() for s in (1, 2))
    graph = make_fx(program)(w, u)
    for seed in (3, 5):
        w, u = (soft_weights(seed + i).detach() for i in (0, 1))
        assert torch.equal(graph(w, u), program(w, u))


def test_provenance_goes_through():
    w = ProvenanceTensor(soft_weights(1).detach(), frozenset({"z"}))
    assert get_provenance(TABLES["w"][SoftIndex(w)]) == {"z"}
    z = track_provenance(SoftIndex(soft_weights(1).detach()), frozenset({"z"}))
    assert get_provenance(z) == {"z"}
    table = ProvenanceTensor(TABLES["w"], frozenset({"table"}))
    assert get_provenance(table[z]) == {"z", "table"}
    assert get_provenance((z == 1).float()) == {"z"}
    assert get_provenance(track_provenance(SoftBit(torch.rand(3)), frozenset({"b"})) * 2.0) == {"b"}


def test_it_is_copied_and_pickled():
    z = SoftIndex(soft_weights(1).detach(), site="z")
    for again in (copy.deepcopy(z), pickle.loads(pickle.dumps(z))):
        assert torch.equal(again.weights, z.weights)
        assert again.site == "z"
        assert again.counts_up
    b = pickle.loads(pickle.dumps(SoftBit(torch.rand(3), "b")))
    assert b.site == "b"


def test_a_bit_is_a_number_until_it_is_turned_into_an_integer():
    v = torch.tensor([0.3, 1.0, 0.0], requires_grad=True)
    b, table = SoftBit(v, "b"), torch.tensor([10.0, 20.0])
    assert torch.equal(1 - b, 1 - v)
    assert torch.equal(F.linear(b, torch.ones(2, 3)), F.linear(v, torch.ones(2, 3)))
    assert torch.equal(b > 0.5, v > 0.5)
    assert torch.equal(b.unsqueeze(-1)[..., 0] * 1, v)
    for mixed in (table[b.long()], table[b.int()], table[(b == 1).long()], torch.where(b == 1, 20.0, 10.0)):
        torch.testing.assert_close(mixed, torch.tensor([13.0, 20.0, 10.0]))
    torch.testing.assert_close(torch.where(b.bool(), 20.0, 10.0), torch.tensor([13.0, 20.0, 10.0]))
    stacked = torch.stack([b, b.flip(0)], -1)
    assert isinstance(stacked, SoftBit)
    assert stacked.requires_grad
    assert bool((SoftBit(v[1:]) == v[1:]).all())  # hard ones may be asked
    with pytest.raises(RelaxationError, match="'b'"):
        bool(b[0] == 1)


def test_a_count_is_its_expectation_until_it_is_compared_or_looked_up():
    w = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    z = SoftIndex(w, torch.arange(3.0), "z")
    torch.testing.assert_close(z.exp(), torch.tensor([1.3, 1.0]).exp())
    torch.testing.assert_close(F.linear(z, torch.ones(1, 2)), torch.tensor([2.3]))
    torch.testing.assert_close((z == 0).float(), torch.tensor([0.2, 0.0]))
    torch.testing.assert_close((z > 0).float(), torch.tensor([0.8, 1.0]))
    torch.testing.assert_close(torch.tensor([5.0, 6.0, 9.0])[z.long()], torch.tensor([7.3, 6.0]))
