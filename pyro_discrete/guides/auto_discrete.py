"""A guide for every latent site of a model, made from the model."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from copy import copy, deepcopy
from operator import attrgetter
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_discrete.errors import SettingError, SiteShapeError, is_number, refuses_unknown_keywords, shown
from pyro_discrete.families import Family
from pyro_discrete.guides.networks import LogitNetworks, trace_on_data
from pyro_discrete.guides.variational import VariationalSite
from pyro_discrete.programs.sites import family_of, latent_sites, without_mask

__all__ = ["AutoDiscreteMeanField"]

Init = str | Callable[[VariationalSite], Tensor]


class AutoDiscreteMeanField(AutoGuide):
    """A mean-field guide for every latent site of a model, so that only the model has to be written.

    .. math:: q(z) = \\prod_i q_i(z_i)

    Each element of a discrete site has logits of its own (free, or given by a network of the observed data); the
    continuous sites get one of Pyro's autoguides. Bernoulli, Categorical and OneHotCategorical sites keep their family;
    other sites of finite support (Binomial ...) get a table of free probabilities, and so do counts without a bound
    where the model states one, `infer={"truncation": 20}`. `.to_event`, `.mask`, plates and `pyro.markov` are as in the
    model; `poutine.scale` is not copied, as in Pyro's autoguides: put it around the guide too. Any estimator can train
    it, also beside guides of one's own in an `AutoGuideList`.

    Continuous sites are drawn first, then discrete ones, those in fewer plates before those in more, so that what a
    datum has of its own can be summed out datum by datum.

    - `amortize`: False for free logits, `[*plates, ...]`: a subsampled plate has them for all of its elements, and a
      step trains those of the subsample. True, or a number of hidden units, for networks with one hidden layer that
      read all observed values, and the tensors among the model's arguments that are not observed (covariates): their
      first dims are matched with the plates by size, those behind are features. Numbers and other arguments are not
      read. Sites in the same plates share one network. An `nn.Module` from `[..., features]` to `[..., logits]` is a
      network of one's own for all discrete sites, which then have to be in the same plates; it reads observed values
      alone, and a warning tells of arguments beside them. With a network, plates may have another size at every call.
    - `input`: a function of the model's arguments that returns what networks read, `[*plates, features]`. Without it
      the guide runs the model once more at every call, to see the observed values; with it, it does not.
    - `continuous`: makes the guide of the continuous sites from a model without the discrete ones; None leaves these
      sites to another guide.
    - `init`: where the logits start: "uniform", "prior" (the model's own), or a function of a `VariationalSite`, whose
      result is broadcast to the logits. `init_scale`: the standard deviation of the noise on free logits, without
      which components of a mixture would stay alike.
    - `create_plates`: as in Pyro, for a plate whose `subsample=` is given.

    Like Pyro's autoguides it makes its parameters at the first call (call it once before collecting
    `parameters()`), and returns a dict of samples. `marginals`, `mode`, `median` and `quantiles` tell what it has
    learned; with a network they take the model's arguments.

    Raises `UnsupportedSiteError` for a discrete site whose values cannot be listed, `SiteShapeError` where plates or a
    network do not fit, `SettingError` for a setting that means nothing.

    >>> import pyro.distributions as dist
    >>> from pyro_discrete import TraceELBO
    >>> def model(x):
    ...     low, high = (pyro.sample(name, dist.Normal(0.0, 5.0)) for name in ("low", "high"))
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Bernoulli(0.5))
    ...         pyro.sample("x", dist.Normal(low + z * (high - low), 1.0), obs=x)
    >>> x = torch.tensor([-3.0, 3.1, 2.9])
    >>> guide = AutoDiscreteMeanField(model)
    >>> loss = TraceELBO("rloo", num_particles=4).loss_and_grads(model, guide, x)
    >>> guide.marginals()["z"].shape, sorted(guide.median(x))
    (torch.Size([3]), ['high', 'low', 'z'])
    """

    @refuses_unknown_keywords
    def __init__(
        self,
        model: Callable[..., Any],
        *,
        amortize: bool | int | nn.Module = False,
        input: Callable[..., Tensor] | None = None,
        continuous: Callable[[Any], AutoGuide] | None = AutoNormal,
        init: Init = "uniform",
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if not isinstance(amortize, nn.Module) and (not isinstance(amortize, int) or amortize < 0):
            raise SettingError(
                f"amortize={shown(amortize)} given; True, False, a number of units or a module expected."
            )
        if not callable(init) and init not in ("uniform", "prior"):
            raise SettingError(f"init={shown(init)} given; 'uniform', 'prior' or a function of a site is expected.")
        if not callable(model):
            raise SettingError(f"model={shown(model)} given; a function that is a Pyro program is expected.")
        for what, given in (("input", input), ("continuous", continuous), ("create_plates", create_plates)):
            if given is not None and not callable(given):
                raise SettingError(f"{what}={shown(given)} given; a function is expected.")
        if not is_number(init_scale, least=0):
            raise SettingError(f"init_scale={shown(init_scale)} given; a number of at least 0 is expected.")
        if input is not None and amortize is False:
            raise SettingError("input= is what a network reads, and amortize=False has none: set amortize=True.")
        super().__init__(model, create_plates=create_plates)
        self.amortized: bool = amortize is not False
        self.input: Callable[..., Tensor] | None = input
        self.init = init
        self.init_scale: float = init_scale
        self._make_continuous = continuous
        self._copies = 0
        self.logits: PyroModule = PyroModule()
        if self.amortized:
            self.networks: LogitNetworks = LogitNetworks(amortize, input)

    def _check_prototype(self, part_trace: Any) -> None:
        """Part of Pyro's interface: the guide of the continuous sites has seen the same model, so it fits."""

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            self._take_from_model(args, kwargs)
        except Exception:
            self.prototype_trace = None  # half of it is no start: the next call says the same
            raise

    def _take_from_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Have sites, plates and parameters as a run of the model has them."""
        trace = trace_on_data(self.model, {}, args, kwargs)
        self.prototype_trace: Any = trace
        if self.master is not None:
            self.master()._check_prototype(_latent_part(trace))
        latent = latent_sites(trace)
        discrete = {n: m for n, m in latent.items() if _is_discrete(m)}
        self._sites = {n: VariationalSite.of(m, discrete) for n, m in discrete.items()}
        self._order = _drawing_order(self._sites)
        others = [n for n in latent if n not in self._sites]
        frames = {f.name: f for m in latent.values() for f in m["cond_indep_stack"] if f.vectorized}
        self._prototype_frames = {name: f for name, f in frames.items() if f.size > 0}
        self._unsized = {name: f.dim for name, f in frames.items() if f.size <= 0}  # as large as what is drawn in them
        self._batch_dims = max([0, *(-f.dim for m in trace.nodes.values() if m["type"] == "sample"
                                     for f in m["cond_indep_stack"] if f.vectorized)])  # fmt: skip
        # A mask may depend on the data, a plate's size too if a network can follow it: then every call looks anew.
        masked = any(m["mask"] is not None or without_mask(m["fn"]) is not m["fn"] for m in latent.values())
        self._looks = masked or (self.amortized and self.input is None)
        self._shapes = _shapes(args, kwargs)
        if self.amortized:
            start = {name: self._start(site) for name, site in self._sites.items()}
            self.networks.make(self.model, self._sites, start, self._batch_dims, (trace, args, kwargs))
        else:
            for name, site in self._sites.items():
                start = self._start(site)
                for frame in site.plates:
                    dim = frame.dim - site.event_dim
                    if start.shape[dim] != site.full_shape[dim]:  # the full size of a subsampled plate
                        repeats = -(-site.full_shape[dim] // start.shape[dim])
                        start = torch.cat([start] * repeats, dim).narrow(dim, 0, site.full_shape[dim])
                start = start + self.init_scale * torch.randn_like(start)
                deep_setattr(self.logits, name, PyroParam(start, constraints.real, site.event_dim))
        if others and self._make_continuous is not None:
            for name in others:
                unsized = [f.name for f in latent[name]["cond_indep_stack"] if f.name in self._unsized]
                if unsized:
                    raise SiteShapeError(
                        f"Site {name!r} is continuous and in the plate {unsized[0]!r}, which states no size; Pyro's "
                        f"guides need one for their parameters. Write pyro.plate({unsized[0]!r}, size)."
                    )
            self.continuous: AutoGuide = self._make_continuous(self._continuous_part())
            with torch.no_grad():  # what it keeps of the model's run can then be copied
                self.continuous._setup_prototype(*args, **kwargs)
        for part in self.modules():
            if isinstance(part, AutoGuide) and part.prototype_trace is not None:
                _free_of_parameters(part.prototype_trace)

    def _continuous_part(self) -> Any:
        """The model without the discrete sites."""
        return poutine.block(self.model, hide=list(self._sites))

    def _hold_continuous(self) -> None:
        """Put back what Pyro's guides forget of a copied one, in the original as in the copy: model and plates."""
        if not self._has_continuous or self.continuous.master is not None:
            return
        self.continuous._update_master(weakref.ref(self) if self.master is None else self.master)
        if self.continuous._model is None:
            self.continuous._model = (self._continuous_part(),)

    @property
    def model(self) -> Any:
        """The model that this is a guide for."""
        if self._model is None:
            raise SettingError(
                f"This {type(self).__name__} was unpickled without its model, a function that no other process finds "
                "by its name. Define the model at the top of a module, or make a new guide of it, run it once, and let "
                "it load this one's state_dict."
            )
        return self._model[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoDiscreteMeanField:
        """A guide of its own for the same model, whose parameters have names of their own in Pyro's store."""
        guides = [part for part in self.modules() if isinstance(part, AutoGuide)]
        held = [(part, part._model, part.master) for part in guides]
        for part, model, _ in held:
            memo[id(part.prototype_trace)] = part.prototype_trace  # read alone; may hold what cannot be copied
            if model is not None:
                memo[id(model[0])] = model[0]
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        try:
            state = {**vars(self), "master": None}
            made.__setstate__({name: deepcopy(value, memo) for name, value in state.items()})
        finally:
            for part, model, master in held:
                part._model, part.master = model, master  # Pyro's guides empty themselves when they are copied
        made._hold_continuous()
        self._copies += 1
        old, new = self._pyro_name, f"{self._pyro_name}_{self._copies + 1}"
        for part in made.modules():
            if isinstance(part, PyroModule):
                part._pyro_name = new + part._pyro_name.removeprefix(old)
        made._copies = 0
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Everything, but no reference to a guide around it, and the model only if it can be pickled."""
        for parameter in self.parameters():
            # a weak reference, which no file holds; Pyro's store puts it back whenever it hands the parameter out
            vars(parameter).pop("unconstrained", None)
        model = self._model
        try:
            pickle.dumps(model)
        except (pickle.PicklingError, AttributeError, TypeError):
            model = None
        return {**vars(self), "master": None, "_model": model, "plates": {}}

    def _start(self, site: VariationalSite) -> Tensor:
        """Where the site's logits start, in the shape that they had in the first run."""
        prior = site.prior_logits()
        if callable(self.init):
            try:
                return self.init(site).to(prior).expand(prior.shape)
            except RuntimeError as error:
                raise SiteShapeError(
                    f"init= returned logits for site {site.name!r} that do not broadcast to {tuple(prior.shape)}."
                ) from error
        return prior if self.init == "prior" else torch.zeros_like(prior)

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A run of the model on this call's data, where one is needed; else the first run's trace."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        trace = self.prototype_trace
        changed = _shapes(args, kwargs) != self._shapes
        if self._looks or changed:
            given = {name: plate._indices for name, plate in self.plates.items() if name not in self._unsized}
            trace = trace_on_data(self.model, given, args, kwargs)
        if changed:
            self._check_plates(trace)
        return trace

    def _check_plates(self, trace: Any) -> None:
        """Raise `SiteShapeError` if a plate has another size now, and sites in it have one parameter an element."""
        for name, msg in latent_sites(trace).items():
            for frame in msg["cond_indep_stack"]:
                known = self._prototype_frames.get(frame.name)
                fixed = not self.amortized or name not in self._sites
                if known is not None and fixed and frame.full_size != known.full_size:
                    raise SiteShapeError(
                        f"Plate {frame.name!r} has {frame.full_size} elements and had {known.full_size} at the first "
                        f"call, and the guide has parameters of their own for those of site {name!r}. Subsample by "
                        "pyro.plate(name, size, subsample_size=...), or let a network give the logits: amortize=True."
                    )
            batch = msg["fn"].batch_shape
            had = self.prototype_trace.nodes[name]["fn"].batch_shape
            if self._unsized and not self.amortized and name in self._sites and batch != had:
                raise SiteShapeError(
                    f"Site {name!r} has batch shape {tuple(batch)} and had {tuple(had)} at the first call, and the "
                    "guide has parameters of their own for its elements. Let a network give the logits: amortize=True."
                )

    def _enter_plates(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the plates of this call and look at its data: `self.plates`, and the trace of the look."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        whole = {n for n, f in self._prototype_frames.items() if f.full_size == f.size}
        if self.master is not None or self.create_plates is not None or not (self._looks or self.amortized):
            self._create_plates(*args, **kwargs)
            self.plates |= {name: pyro.plate(name, dim=dim) for name, dim in self._unsized.items()}
            return self._look(args, kwargs)
        self.plates: dict[str, pyro.plate] = {name: pyro.plate(name, dim=dim) for name, dim in self._unsized.items()}
        self.plates |= {
            name: pyro.plate(name, frame.full_size, subsample_size=frame.size, dim=frame.dim)
            for name, frame in self._prototype_frames.items()
            if name not in whole
        }
        trace = self._look(args, kwargs)
        sizes = {f.name: f.size for m in latent_sites(trace).values() for f in m["cond_indep_stack"]}
        if trace is self.prototype_trace and self.input is not None:
            sizes |= self._input_sizes(args, kwargs)
        for name in whole:
            self.plates[name] = pyro.plate(name, sizes[name], dim=self._prototype_frames[name].dim)
        return trace

    def _input_sizes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, int]]:
        """Sizes of plates as the features of `input` have them."""
        assert self.input is not None
        shape = self.input(*args, **kwargs).shape[:-1]
        for name, frame in self._prototype_frames.items():
            if len(shape) >= -frame.dim and shape[frame.dim] > 1:
                yield name, shape[frame.dim]

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent site, in the plates that the model has; returns the values by name."""
        trace = self._enter_plates(args, kwargs)
        self._hold_continuous()
        result: dict[str, Tensor] = dict(self.continuous(*args, **kwargs)) if self._has_continuous else {}
        logits = self._all_logits(trace, args, kwargs)
        for name in self._order:
            site, node = self._sites[name], trace.nodes[name]
            infer: Any = {key: copy(value) for key, value in site.infer.items()}
            with ExitStack() as stack:
                for frame in site.plates:
                    if frame.name not in self._unsized:
                        stack.enter_context(self.plates[frame.name])
                if node["mask"] is not None:
                    stack.enter_context(poutine.mask(mask=node["mask"]))
                own = logits[name] if self.amortized else attrgetter(name)(self.logits)  # the plates' subsample of it
                for frame in site.plates:  # Pyro has no parameters in a plate that states no size
                    if frame.name in self._unsized:
                        stack.enter_context(self.plates[frame.name])
                result[name] = pyro.sample(name, site.distribution(own, node["fn"]), infer=infer)
        return result

    def _all_logits(self, trace: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """The logits of every discrete site: of all elements where they are free, of this call's with a network."""
        if self.amortized:
            return self.networks(self.model, (trace, args, kwargs))
        return {name: attrgetter(name)(self.logits) for name in self._sites}

    @torch.no_grad()
    def _learned(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Detached logits by site, outside all plates."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        trace = self.prototype_trace
        if self.amortized:
            if not args and not kwargs:
                raise SettingError("The logits are a network's: give the arguments of the model, marginals(x) say.")
            trace = trace_on_data(self.model, {}, args, kwargs) if self._looks else trace
        return {name: logits.detach() for name, logits in self._all_logits(trace, args, kwargs).items()}

    def marginals(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Probabilities at each discrete site: of a one, `[*batch, *event]`, for a Bernoulli; else of all values, last.

        Free logits are of all the data, whatever the subsample, and need no arguments after the first call.
        """
        return {n: self._sites[n].probabilities(logits) for n, logits in self._learned(args, kwargs).items()}

    def mode(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The most probable value of each discrete site, in the shape of the model's values."""
        return {n: self._sites[n].mode(logits) for n, logits in self._learned(args, kwargs).items()}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of each latent site; the most probable category of one whose values have no order."""
        found = {}
        for name, logits in self._learned(args, kwargs).items():
            median = self._sites[name].quantile(logits, 0.5)
            found[name] = self._sites[name].mode(logits) if median is None else median
        return {**found, **(self.continuous.median(*args, **kwargs) if self._has_continuous else {})}

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """`[quantiles, *batch, *event]` for each latent site whose values have an order: not for categories."""
        levels = torch.as_tensor(quantiles).tolist()
        found = {}
        for name, logits in self._learned(args, kwargs).items():
            values = [v for v in (self._sites[name].quantile(logits, q) for q in levels) if v is not None]
            if values:
                found[name] = torch.stack(values)
        return {**found, **(self.continuous.quantiles(quantiles, *args, **kwargs) if self._has_continuous else {})}

    @property
    def _has_continuous(self) -> bool:
        return "continuous" in self._modules


def _drawing_order(sites: Mapping[str, VariationalSite]) -> list[str]:
    """Sites in fewer plates first, else in the model's order; those of chains stay together, as one is drawn given all
    that went before it."""
    chained = [len(site.plates) for site in sites.values() if "_markov_scope" in site.infer]
    return sorted(sites, key=lambda n: min(chained) if "_markov_scope" in sites[n].infer else len(sites[n].plates))


def _latent_part(trace: Any) -> Any:
    """The trace without what is no latent site."""
    part = trace.copy()
    for name in set(trace.nodes) - set(latent_sites(trace)):
        part.remove_node(name)
    return part


def _free_of_parameters(trace: Any) -> None:
    """Take out of a trace that is kept what cannot be copied: params, which Pyro's store holds by weak references."""
    for name in trace.param_nodes:
        trace.remove_node(name)
    for msg in trace.nodes.values():
        _detach(msg.get("fn"))


def _detach(part: Any) -> None:
    """Detach the tensors of a distribution, and of those that it is made of."""
    for name, value in vars(part).items() if isinstance(part, Distribution) else ():
        if isinstance(value, Tensor):
            vars(part)[name] = value.detach()
        _detach(value)


def _is_discrete(msg: Any) -> bool:
    return family_of(msg["fn"]) not in (None, Family.CONTINUOUS)


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What tells whether plates may have another size: shapes of tensors, and plain numbers."""
    values = [*args, *(kwargs[key] for key in sorted(kwargs))]
    return tuple(tuple(v.shape) if torch.is_tensor(v) else v if isinstance(v, int) else None for v in values)
