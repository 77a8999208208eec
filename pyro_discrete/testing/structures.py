"""What every structure must keep, by brute force over all values of small instances: laws, sums, noise, soft values."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import Tensor

import pyro_discrete.distributions as distributions
from pyro_discrete.distributions.permutations import inverse, precedence
from pyro_discrete.distributions.structure import GibbsStructure, Structure
from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.relaxations.soft_index import SoftIndex

__all__ = ["StructureReport", "check_structure", "discover_structures"]


MOST_VALUES = 200
"""Values of an instance that `small` may give."""


@dataclass
class StructureReport:
    """What `check_structure` found.

    - `lines`: one a check and instance: what was compared, and how far it is off. `failures`: those that do not hold.
    """

    structure: str
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def note(self, what: str, found: object, holds: bool) -> None:
        """One more check."""
        line = f"{what}: {found}"
        self.lines.append(line)
        if not holds:
            self.failures.append(line)

    def __str__(self) -> str:
        lines = [f"{self.structure}: {len(self.lines)} checks, {len(self.failures)} fail"]
        failing = set(self.failures)
        return "\n".join(lines + [f"  {'FAILS' if line in failing else 'holds'} {line}" for line in self.lines])


def discover_structures() -> list[type[Structure]]:
    """Every structure of the package `pyro_discrete.distributions` that has small instances, found by looking."""
    found = [each for each in vars(distributions).values() if inspect.isclass(each) and issubclass(each, Structure)]
    return [each for each in found if each.small.__func__ is not Structure.small.__func__]  # type: ignore[attr-defined]


def check_structure(
    structure: type[Structure], *, draws: int = 50_000, seed: int = 0, false_alarm: float = 1e-4
) -> StructureReport:
    """Hold a class to the protocol of `Structure`, on the instances that its `small` gives.

    - `draws`: for each comparison of frequencies or means. `false_alarm`: the probability with which a right class
      fails, by all of these together.

    Everything is compared with sums over `enumerate_support`: that log-masses sum to one (in both precisions, batched,
    expanded, masked), that draws and what noise stands for have that law, marginals, entropies, divergences, best
    values and gradients, that noise given a value keeps it and has the law of noise that brought it (by its moments,
    and by the slope of an expectation, which jumping noise gets wrong), and that soft values have the hard ones at
    their corners. What the class does not define is left out. `assert_contract` judges the report.

    >>> from pyro_discrete.distributions import PlackettLuce
    >>> report = check_structure(PlackettLuce, draws=2_000)
    >>> report.failures
    []
    """
    report = StructureReport(structure.__name__)
    instances = structure.small()
    report.note("small() has a batched instance", [list(d.batch_shape) for d in instances],
                any(d.batch_shape for d in instances))  # fmt: skip
    laws = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for number, instance in enumerate(instances):
            label = f"instance {number}, logits {list(instance.logits.shape)}"
            try:
                checked = _Instance(instance, label, report)
                checked.values()
                if report.failures:
                    continue  # what follows is judged by these values
                checked.precision()
                checked.shapes()
                checked.best()
                checked.gradients()
                if isinstance(instance, GibbsStructure):
                    checked.sums()
                checked.vertices()
                laws += checked.laws(draws)
                if instance.defines("perturb"):
                    checked.soft_values()
            except (DiscreteInferenceError, RuntimeError, ValueError, IndexError, NotImplementedError) as error:
                report.note(label, f"{type(error).__name__}: {error}", False)
    for law in laws:  # the threshold is shared by all comparisons of all instances
        law.judge(report, false_alarm / sum(each.number for each in laws))
    return report


@dataclass(frozen=True)
class _Law:
    """Comparisons of one kind: either the least p-value of chi-square tests, or the worst |z| of means."""

    what: str
    number: int
    p_value: float = 1.0
    z: float = 0.0

    def judge(self, report: StructureReport, false_alarm: float) -> None:
        limit = NormalDist().inv_cdf(1 - false_alarm / 2)
        found = (
            f"p {self.p_value:.2g}, least {false_alarm:.1g}" if not self.z else f"|z| {self.z:.2f}, most {limit:.2f}"
        )
        report.note(self.what, f"{found} ({self.number} comparisons)", self.p_value > false_alarm and self.z < limit)


class _Instance:
    """One small instance, and the list of its values."""

    def __init__(self, structure: Structure, label: str, report: StructureReport) -> None:
        self.d, self.label, self.report = structure, label, report
        self.support = structure.enumerate_support()  # [V, *batch, *event]
        self.listed = structure.enumerate_support(expand=False).reshape((-1,) + structure.event_shape)
        self.log_p = structure.log_prob(self.support).detach()
        self.p = self.log_p.exp()
        self.vertex_dims = len(structure.vertex_shape)

    def note(self, what: str, found: object, holds: bool | Tensor) -> None:
        self.report.note(f"{what}, {self.label}", found, bool(holds))

    def near(self, what: str, found: Tensor, right: Tensor, tolerance: float) -> None:
        """Compare two tensors, infinities alike where both have them."""
        same = (found == right) | (found.shape != right.shape)
        off = torch.where(same, 0.0, (found - right).abs()) if found.shape == right.shape else torch.tensor(math.inf)
        worst = off.max().item() if off.numel() else 0.0
        self.note(what, f"off by {worst:.1e}, at most {tolerance:.0e}", worst <= tolerance)

    # -------------------------------------------------------------------------------------------------- values and law

    def values(self) -> None:
        d, count = self.d, len(self.listed)
        self.note("number of values", f"{count} listed, cardinality {d.cardinality}", d.cardinality == count)
        self.note("few enough to go through", f"{count} of {MOST_VALUES}", count <= MOST_VALUES)
        flat = self.listed.flatten(1)
        self.note("no value is listed twice", len(flat.unique(dim=0)), len(flat.unique(dim=0)) == count)
        self.near("log-masses sum to one", self.p.sum(0), torch.ones(d.batch_shape, dtype=self.p.dtype), 1e-9)
        self.note("all values are in the support", d.support, _inside(d, self.listed).all())
        entries = flat.unique()
        every = torch.cartesian_prod(*[entries] * flat.shape[-1]).reshape((-1,) + d.event_shape)
        inside = every[_inside(d, every)]
        self.note("nothing else of the same numbers is", f"{len(inside)} of {len(every)}", len(inside) == count)
        strict = type(d)(d.logits, validate_args=True, **d._settings())
        outside = [self.listed[0] + 1000, self.listed[0] - 1000, *every[~_inside(d, every)][:20]]
        self.note("validation refuses other values", f"{len(outside)} tried", all(_refused(strict, v) for v in outside))
        self.note("and takes all of these", "", not any(_refused(strict, v) for v in self.listed))

    def precision(self) -> None:
        d = self.d.like(self.d.logits.float())
        log_p = d.log_prob(d.enumerate_support())
        self.note("log-masses keep single precision", log_p.dtype, log_p.dtype == torch.float32)
        self.near("log-masses in single precision", log_p.exp().sum(0), torch.ones(d.batch_shape), 1e-5)
        self.note("vertices keep single precision", "", d.vertex(d.sample()).dtype == torch.float32)
        if d.defines("perturb"):
            self.note("noise keeps single precision", "", d.soft(d.perturb(), 0.5).dtype == torch.float32)

    def shapes(self) -> None:
        d = self.d
        wide = d.expand((2, *d.batch_shape))
        self.near("log-masses of an expanded one", wide.log_prob(self.support.unsqueeze(1)),
                  self.log_p.unsqueeze(1).expand(len(self.listed), *wide.batch_shape), 1e-12)  # fmt: skip
        self.note(
            "draws of an expanded one", wide.sample((3,)).shape, wide.sample((3,)).shape == wide.shape(torch.Size((3,)))
        )
        hidden = wide.mask(torch.tensor([[True], [False]]).reshape((2,) + (1,) * len(d.batch_shape)))
        found = hidden.log_prob(self.support[0].expand((2,) + self.support.shape[1:]))
        self.near(
            "log-masses under a mask", found, torch.stack([self.log_p[0], torch.zeros_like(self.log_p[0])]), 1e-12
        )
        event = wide.to_event(1 + len(d.batch_shape))
        value = self.support[0].expand((2,) + self.support.shape[1:])
        self.near("log-mass of an event of several", event.log_prob(value), 2 * self.log_p[0].sum(), 1e-9)
        for place, one in enumerate(self._one_by_one()):
            batch = self.log_p.reshape(len(self.listed), -1)[:, place]
            self.near(f"log-masses of element {place} alone", one.log_prob(self.listed), batch, 1e-12)
            value = one.sample()
            self.note(f"shape of a draw of element {place}", value.shape, value.shape == d.event_shape)

    def _one_by_one(self) -> Iterator[Structure]:
        d = self.d
        param = d.logits.shape[d.logits.dim() - d.param_dim :]
        for logits in d.logits.reshape((-1,) + param):
            yield d.like(logits)

    def best(self) -> None:
        d = self.d
        massive = int((self.log_p > -math.inf).sum(0).min())
        if d.defines("argmax"):
            self.near("log-mass of the mode", d.log_prob(d.mode), self.log_p.amax(0), 1e-8)
        if d.defines("top_k"):
            k = min(5, massive)
            self.near(f"log-masses of the best {k}", d.log_prob(d.top_k(k)), self.log_p.topk(k, 0).values, 1e-9)

    # ------------------------------------------------------------------------------------------------------- gradients

    def _slopes(self, what: str, function: Callable[[Structure], Tensor]) -> None:
        """Compare the gradient of a sum of `function` in the logits with differences; zero and finite at -inf."""
        finite = self.d.logits > -math.inf
        logits = self.d.logits.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(self.d.like(logits)).sum(), logits)
        self.note(f"gradient of {what} is finite", "", slope.isfinite().all())
        self.note(f"gradient of {what} at logits of -inf", slope[~finite].tolist(), (slope[~finite] == 0).all())
        step = torch.where(finite, torch.randn_like(slope), 0.0)
        with torch.no_grad():
            at = [function(self.d.like(torch.where(finite, logits + h * step, -math.inf))).sum() for h in (1e-5, -1e-5)]
        self.near(f"gradient of {what} against differences", (slope * step).sum(), (at[0] - at[1]) / 2e-5, 1e-7)

    def gradients(self) -> None:
        some = self.p > 0
        weight = torch.where(some, torch.randn_like(self.p), 0.0)

        def scores(d: Structure) -> Tensor:
            return torch.where(some, weight * torch.where(some, d.log_prob(self.support), 0.0), 0.0)

        self._slopes("log-masses", scores)
        kept = self.d.like(self.d.logits.detach().clone().requires_grad_())
        for _ in range(2):  # what an instance keeps must not be used up
            (torch.where(some, kept.log_prob(self.support), 0.0)).sum().backward()
        with torch.no_grad():
            kept.logits.mul_(0.5)
        halved = self.d.like(kept.logits.detach().clone()).log_prob(self.support)
        self.near("log-masses after logits were written to", kept.log_prob(self.support).detach(), halved, 1e-12)

    def sums(self) -> None:
        d = self.d
        assert isinstance(d, GibbsStructure)
        p = self.p.reshape(self.p.shape + (1,) * self.vertex_dims)
        mean = (p * d.vertex(self.support)).sum(0)
        self.near("marginals", d.marginals().detach(), mean, 1e-9)
        self.near("entropy", d.entropy().detach(), -torch.special.xlogy(self.p, self.p).sum(0), 1e-9)
        other = d.like(torch.where(d.logits > -math.inf, d.logits + torch.randn_like(d.logits), -math.inf).detach())
        if type(d)._check_logits is not Structure._check_logits and not _has_law(other):
            other = d.like(d.logits.detach() * 0.5)
        gap = torch.where(self.p > 0, self.log_p - other.log_prob(self.support).detach(), 0.0)
        self.near("divergence", torch.distributions.kl_divergence(d, other).detach(), (self.p * gap).sum(0), 1e-9)
        weight = torch.randn_like(mean)
        self._slopes("marginals", lambda d: d.marginals() * weight)
        self._slopes("entropy", lambda d: d.entropy())  # type: ignore[attr-defined]
        if d.defines("weighted"):
            self._weighted(d)
        if d.defines("weighted_pairs") and d.event_shape[0] > 1:
            self._weighted_pairs(d)

    def _weighted(self, d: GibbsStructure) -> None:
        """Weights of numbers at places: some of -inf where every value keeps a number, against the list of values."""
        places = d.event_shape[0]
        weights = torch.randn(*d.batch_shape, places, d.numbers, dtype=d.logits.dtype)
        best = d.mode.long()
        spared = torch.nn.functional.one_hot(best, d.numbers).bool()
        weights = torch.where((torch.rand_like(weights) < 0.2) & ~spared, -math.inf, weights).requires_grad_()
        at = self.support.long().unsqueeze(-1)
        every = weights.expand(*self.support.shape, d.numbers).gather(-1, at).squeeze(-1).sum(-1)
        terms = self.log_p + d.log_partition.detach() + every
        made, more = d.weighted(weights)
        found = made.log_partition + more
        right = terms.logsumexp(0)
        self.near("log-sums with weights of numbers at places", found.detach(), right.detach(), 1e-9)
        share = (terms.detach().softmax(0).unsqueeze(-1).unsqueeze(-1) * _numbered(self.support, d.numbers)).sum(0)
        (slope,) = torch.autograd.grad(found.sum(), weights)
        self.near("their slopes", slope, share, 1e-9)
        self.near("marginals of numbers at places", made.place_marginals().detach(), share, 1e-9)

    def _weighted_pairs(self, d: GibbsStructure) -> None:
        """Weights of the numbers at a place and the next one, against the list of values."""
        weights = torch.randn(*d.batch_shape, d.event_shape[0] - 1, d.numbers, d.numbers, dtype=d.logits.dtype)
        weights = weights.requires_grad_()
        hot = _numbered(self.support, d.numbers)
        both = hot[..., :-1, :].unsqueeze(-1) * hot[..., 1:, :].unsqueeze(-2)
        terms = self.log_p + d.log_partition.detach() + (both * weights).sum((-3, -2, -1))
        found, right = d.weighted_pairs(weights).log_partition, terms.logsumexp(0)
        self.near("log-sums with weights of pairs", found.detach(), right.detach(), 1e-9)
        share = (terms.detach().softmax(0)[..., None, None, None] * both).sum(0)
        (slope,) = torch.autograd.grad(found.sum(), weights)
        self.near("slopes of these", slope, share, 1e-9)

    # -------------------------------------------------------------------------------------------- vertices, soft values

    def vertices(self) -> None:
        d = self.d
        vertex = d.vertex(self.support)
        self.note("shape of vertices", list(vertex.shape[-self.vertex_dims :]),
                  vertex.shape == self.log_p.shape + d.vertex_shape)  # fmt: skip
        self.note("vertices are zeros and ones", "", ((vertex == 0) | (vertex == 1)).all())
        self.note("values of vertices", "", (d.value_of(vertex) == self.support).all())
        impossible = (vertex > 0) & ~d.possible
        never = impossible.flatten(impossible.dim() - self.vertex_dims).any(-1)
        self.note("no mass where a vertex is not possible", "", (self.p[never] == 0).all())
        if d.defines("log_mass"):
            self.near("log-mass of vertices", d.log_mass(vertex).detach(), self.log_p, 1e-9)
        if d.soft_value == "weights":
            self.note("a value is its vertex", "", (vertex == self.support).all())
            return
        weights = d.index_weights(vertex)
        soft = SoftIndex(weights, site="value")
        table = torch.randn(weights.shape[-1], dtype=vertex.dtype)
        self.near("a table looked up by soft corners", table[soft], table[self.support], 1e-12)
        self.near("soft corners as numbers", soft.to(vertex.dtype), self.support.to(vertex.dtype), 1e-12)
        items = weights.shape[-1]
        if items == weights.shape[-2] and (self.listed.sort(-1).values == torch.arange(items)).all():
            hard, relaxed = precedence(self.support).to(vertex.dtype), precedence(soft)
            self.near("precedence of soft corners", relaxed, hard, 1e-12)
            self.near("inverse of soft corners", inverse(soft).to(vertex.dtype), inverse(self.support).double(), 1e-12)

    def soft_values(self) -> None:
        d = self.d
        noise = d.expand((2000, *d.batch_shape)).perturb().detach()
        off = (d.soft(noise, 1e-3) - d.vertex(d.read(noise))).abs().amax([*range(-self.vertex_dims, 0)])
        share = (off > 0.01).double().mean()
        what = "soft values near temperature 0 are the vertices read, but for ties"
        self.note(what, f"{share:.3f} are not", share < 0.05)
        soft = d.soft(noise, 0.7)
        self.note("soft values are between zero and one", "", ((soft >= -1e-9) & (soft <= 1 + 1e-9)).all())
        if isinstance(d, GibbsStructure):
            constant = _constant_over(d.vertex(self.support).reshape(-1, d.vertex_shape.numel()))
            flat = soft.reshape(-1, d.vertex_shape.numel())
            first = d.vertex(self.support[0]).reshape(-1, d.vertex_shape.numel())[:1]
            right = (first @ constant).expand(len(flat), -1)
            self.near("what is constant over vertices is so at soft values", flat @ constant, right, 1e-8)
        if d.soft_value == "index":
            total = d.index_weights(soft).sum(-1)
            self.near("weights of a soft index sum to one", total, torch.ones_like(total), 1e-9)
        self._slopes_of_soft("noise", lambda d: d.perturb())
        if d.defines("perturb_given"):
            self._slopes_of_soft("noise given a value", lambda d: d.perturb_given(d.sample()))

    def _slopes_of_soft(self, what: str, noise: Callable[[Structure], Tensor]) -> None:
        """Whether slopes, and slopes of these, are numbers; at a weight of zero too, where a learned one may start."""
        leaf = self.d.logits.detach().clone().requires_grad_()
        found = []
        for weight in (1.0, 0.0):
            moving = self.d.like(leaf)
            soft = moving.soft(noise(moving), 0.5)
            total = soft.square().sum() + (moving.log_mass(soft).sum() if moving.defines("log_mass") else 0.0)
            (slope,) = torch.autograd.grad(weight * total, leaf, create_graph=True)
            (second,) = torch.autograd.grad((slope + slope.square()).sum(), leaf)
            found += [slope.isfinite().all(), second.isfinite().all()]
        self.note(f"slopes of soft values by {what}, and slopes of these, are finite", "", all(found))

    # ------------------------------------------------------------------------------------------------------------ laws

    def laws(self, draws: int) -> Iterator[_Law]:
        d = self.d
        yield from self._frequencies("frequencies of draws", d.sample((draws,)))
        if not d.defines("perturb"):
            return
        wide = d.expand((draws, *d.batch_shape))
        noise = wide.perturb().detach()
        read = d.read(noise)
        yield from self._frequencies("frequencies of what noise stands for", read)
        if not d.defines("perturb_given"):
            return
        given = d.read(wide.perturb().detach())
        again = wide.perturb_given(given).detach()
        self.note("noise given a value stands for it", "", (d.read(again) == given).all())
        alone = len(d.batch_shape) == 0
        if alone:
            yield self._moments(self._index(read), noise, self._index(given), again)
            yield self._slope(draws)

    def _index(self, value: Tensor) -> Tensor:
        """Which value of the list, of `[N, *event]`."""
        flat = self.listed.flatten(1)
        return (value.flatten(1).unsqueeze(1) == flat).all(-1).to(torch.uint8).argmax(1)

    def _frequencies(self, what: str, drawn: Tensor) -> Iterator[_Law]:
        batch = self.p.reshape(len(self.listed), -1)
        values = drawn.reshape((len(drawn), -1) + self.d.event_shape)
        inside = _inside(self.d, drawn).all()
        self.note(f"{what} are of the support", "", inside)
        for place in range(batch.shape[1]):
            counts = torch.bincount(self._index(values[:, place]), minlength=len(self.listed)).double()
            p = _chi_square(counts, batch[:, place].double())
            yield _Law(f"{what}, {self.label}, element {place}", 1, p_value=p)

    def _moments(self, read: Tensor, noise: Tensor, given: Tensor, again: Tensor) -> _Law:
        """Means of functions of the noise at each value: of noise that brought it, and of noise given it."""
        worst, number = 0.0, 0
        for function in (lambda x: x, torch.square, torch.sigmoid):
            means, squares = [], []
            for index, z in ((read, noise), (given, again)):
                y = function(z.clamp(-5, 5)).double()
                zeros = y.new_zeros(len(self.listed), y.shape[1])
                means.append(zeros.index_add(0, index, y) / len(y))
                squares.append(zeros.index_add(0, index, y.square()) / len(y))
            variance = squares[0] - means[0].square() + squares[1] - means[1].square()
            spread = (variance.clamp(min=0) / len(noise)).sqrt()
            seen = (self._times(read) + self._times(given) > 50).unsqueeze(-1) & (spread > 1e-9)
            z = torch.where(seen, (means[0] - means[1]) / spread.clamp(min=1e-12), 0.0).abs()
            worst, number = max(worst, z.max().item()), number + int(seen.sum())
        return _Law(f"noise given a value has the law of noise that brought it, {self.label}", max(number, 1), z=worst)

    def _times(self, index: Tensor) -> Tensor:
        return torch.bincount(index, minlength=len(self.listed))

    def _slope(self, draws: int) -> _Law:
        """The gradient of a mean over noise: pathwise, and as noise given the value that is drawn and scored.

        Both have the same mean if noise given a value moves with the logits as it should.
        """
        d = self.d
        leaf = d.logits.detach().expand((draws,) + d.logits.shape).clone().requires_grad_()
        wide = d.like(leaf)
        noise = wide.perturb()
        weight = torch.randn(noise.shape[-1], dtype=noise.dtype)

        def cost(z: Tensor) -> Tensor:
            total = (weight * z.clamp(-30, 30).sigmoid()).sum(-1)
            return total + (2 * total).sin()

        value = wide.sample()
        again = wide.perturb_given(value)
        score = wide.log_prob(value)
        difference = cost(noise) - cost(again) - cost(again).detach() * score
        (slope,) = torch.autograd.grad(difference.sum(), leaf)
        slope = slope.flatten(1)
        spread = slope.std(0) / draws**0.5
        moving = spread > 1e-9
        worst = torch.where(moving, slope.mean(0) / spread.clamp(min=1e-12), 0.0).abs().max().item()
        what = f"slope of a mean over noise, pathwise and given the value, {self.label}"
        return _Law(what, max(int(moving.sum()), 1), z=worst)


def _inside(structure: Structure, value: Tensor) -> Tensor:
    """Whether each value is in the support: `[...]`."""
    return structure.support.check(value)  # type: ignore[union-attr]


def _refused(structure: Structure, value: Tensor) -> bool:
    try:
        structure.log_prob(value.expand(structure.batch_shape + structure.event_shape))
    except ValueError:
        return True
    return False


def _numbered(values: Tensor, numbers: int) -> Tensor:
    """Indicators of the number at each place, `[..., places, numbers]`."""
    return torch.nn.functional.one_hot(values.long(), numbers).double()


def _has_law(structure: Structure) -> bool:
    try:
        structure._check_logits()
    except DiscreteInferenceError:
        return False
    return True


def _constant_over(corners: Tensor) -> Tensor:
    """A basis of the linear functions that have one value at all corners `[V, n]`: `[n, k]`."""
    moved = corners - corners[:1]
    _, sizes, basis = torch.linalg.svd(moved, full_matrices=True)
    rank = int((sizes > 1e-9).sum())
    return basis[rank:].mT


def _chi_square(counts: Tensor, p: Tensor) -> float:
    """p-value of these counts under a law; cells that are rare are taken together, impossible ones refuse a count."""
    if bool((counts[p == 0] > 0).any()):
        return 0.0
    expected = counts.sum() * p
    often = expected >= 5
    cells = [(counts[often], expected[often])]
    if bool((~often & (p > 0)).any()):
        cells.append((counts[~often].sum().reshape(1), expected[~often].sum().reshape(1)))
    seen, due = (torch.cat(each) for each in zip(*cells, strict=True))
    statistic = ((seen - due).square() / due).sum()
    if len(due) < 2:
        return 1.0
    return float(torch.special.gammaincc(torch.tensor((len(due) - 1) / 2, dtype=torch.float64), statistic / 2))
