"""Soft indices at their limits: what they refuse, and how they are captured, traced, cast, copied and saved."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from pyro.ops.provenance import ProvenanceTensor, get_provenance, track_provenance
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_discrete import SoftIndex
from pyro_discrete.errors import RelaxationError
from pyro_discrete.relaxations.soft_index import SoftBit
from tests.test_soft_index import TABLES, K, Z, one_hot, soft_weights, value


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
