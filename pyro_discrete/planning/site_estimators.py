"""The estimators of one ELBO, by site, with state that may be loaded before the sites are known."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.params import param_with_module_name
from torch import Tensor, nn

from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Estimator

__all__ = [
    "LAST_LOOK",
    "SiteEstimators",
]


LAST_LOOK = 50
"""At the call of this number it is last seen whether the estimators' parameters are stepped."""


def _key(name: str) -> str:
    """A site name as a module name, which may hold no dot."""
    return name.replace(".", "/")


def _listed(names: Sequence[str]) -> str:
    """A few sites for a message."""
    if not names:
        return "no latent sites"
    return ("sites " if len(names) > 1 else "site ") + ", ".join(map(repr, names[:6])) + " ..." * (len(names) > 6)


class _Owner:
    """Says on a parameter whose it is, while that lives; a parameter loaded from a file is nobody's."""

    def __init__(self, module: nn.Module | None = None) -> None:
        self._reference = None if module is None else weakref.ref(module)

    def __call__(self) -> nn.Module | None:
        return None if self._reference is None else self._reference()

    def __reduce__(self) -> tuple[type[_Owner], tuple[()]]:
        return _Owner, ()


class SiteEstimators(nn.Module):
    """Site name to the estimator of its own.

    `load_state_dict` before the first call keeps the state of sites not yet known; they take it up when they are added.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[str, dict[str, Any]] = {}
        self._prefix: str | None = None
        self._watched: list[tuple[str, nn.Parameter, Tensor]] = []
        self._told: set[str] = set()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(name) in self._modules

    def __getitem__(self, name: str) -> Estimator:
        return self._modules[_key(name)]  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self._modules)

    def items(self) -> Iterator[tuple[str, Estimator]]:
        """Pairs of site name and estimator."""
        for key, module in self._modules.items():
            yield key.replace("/", "."), module  # type: ignore[misc]

    def keep(self, name: str, estimator: Estimator) -> Estimator:
        """The site's estimator: the one it has, with its state, if that is of the same kind, else `estimator`.

        A new one takes up the state that waits for it, if any.
        """
        if name in self and type(self[name]) is type(estimator):
            return self[name]
        self._modules[_key(name)] = estimator
        state = self._waiting.pop(_key(name), None)
        if state is not None:
            try:
                estimator.load_state_dict(state)
            except RuntimeError as error:
                raise SettingError(
                    f"The loaded state of site {name!r} is not that of its estimator {estimator.name!r}: {error}. "
                    "Choose the estimator that the state was saved under, or do not load it."
                ) from error
        return estimator

    def warn_of_strangers(self, names: Collection[str], more_names: Callable[[], Collection[str]]) -> None:
        """Say once if a loaded state holds what was learned at sites that the guide has in none of its runs."""
        waiting = {key.replace("/", ".") for key in self._waiting if self._waiting[key]} - self._told
        if not waiting - set(names):
            return
        known = set(names) | set(more_names())
        strangers = sorted(waiting - known)
        self._told |= set(strangers)
        if strangers:
            warnings.warn(
                f"The loaded state holds what estimators learned at {_listed(strangers)}, which the guide does not "
                f"have; it has {_listed(sorted(known))}. That part of the state is kept, and not used.",
                stacklevel=6,
            )

    def state_tensors(self) -> list[Tensor]:
        """Everything that the estimators may change or learn in a step."""
        return [tensor for _, estimator in self.items() for tensor in estimator.state_tensors()]

    def learned_apart(self) -> list[Tensor]:
        """What no optimiser of the caller's changes: see `Estimator.learned_apart`."""
        return [tensor for _, estimator in self.items() for tensor in estimator.learned_apart()]

    def _trained_by_caller(self) -> list[tuple[str, Estimator]]:
        """Estimators with parameters that the caller's optimiser is to train."""
        if not any(e._parameters or e._modules for e in self._modules.values()):  # type: ignore[union-attr]
            return []  # as most
        return [
            (n, e) for n, e in self.items() if e.learning_rate is None and any(p.requires_grad for p in e.parameters())
        ]

    def register(self) -> None:
        """Make the estimators' parameters known to Pyro, under names that no other ELBO of this process has."""
        own, store = self._trained_by_caller(), pyro.get_param_store()
        registered = self._registered(own)
        if registered is not None:
            for name in registered:
                pyro.param(name)  # for whoever collects the parameters of a step
            return
        if self._prefix is None or self._is_anothers(self._prefix, own):
            taken = {name.split(".")[0] for name in store}
            candidates = ("estimators" if i == 1 else f"estimators_{i}" for i in range(1, len(taken) + 2))
            self._prefix = next(c for c in candidates if c not in taken)
        for name, estimator in own:
            for key, parameter in estimator.named_parameters():
                parameter.owner = _Owner(self)  # type: ignore[attr-defined]
                full = param_with_module_name(f"{self._prefix}.{name}", key)
                if full in store and store[full].shape != parameter.shape:
                    del store[full]  # of a network that this one has replaced
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*was not registered in the param store")  # a frozen one
                pyro.module(f"{self._prefix}.{name}", estimator, update_module_params=True)

    def _registered(self, own: list[tuple[str, Estimator]]) -> list[str] | None:
        """The names under which Pyro knows the parameters, None unless it knows them all, and as this ELBO's."""
        store, names = pyro.get_param_store(), []
        for name, estimator in own:
            for key, parameter in estimator.named_parameters():
                if not parameter.requires_grad:
                    continue
                full = param_with_module_name(f"{self._prefix}.{name}", key)
                if full not in store or store[full].unconstrained() is not parameter:  # type: ignore[attr-defined]
                    return None
                if parameter.owner() is not self:  # type: ignore[attr-defined]
                    return None
                names.append(full)
        return names

    def _is_anothers(self, prefix: str, own: list[tuple[str, Estimator]]) -> bool:
        """Whether a name below `prefix` is a parameter of another live ELBO, such as the one our state came from."""
        store = pyro.get_param_store()
        for name, estimator in own:
            for key, _ in estimator.named_parameters():
                full = param_with_module_name(f"{prefix}.{name}", key)
                owner = getattr(store[full].unconstrained(), "owner", None) if full in store else None  # type: ignore[attr-defined]
                if owner is not None and owner() not in (None, self):
                    return True
        return False

    def warn_if_idle(self, calls: int) -> None:
        """Say once if the estimators' parameters have not been stepped from the first call to that of `LAST_LOOK`."""
        if calls == 1:
            own = self._trained_by_caller()
            self._watched = [
                (name, p, p.detach().clone())
                for name, estimator in own
                for p in estimator.parameters()
                if p.requires_grad
            ]
        elif calls == LAST_LOOK and self._watched:
            idle = sorted({name for name, parameter, before in self._watched if torch.equal(parameter, before)})
            self._watched = []
            if idle:
                warnings.warn(
                    f"The estimators of sites {', '.join(map(repr, idle))} have parameters that no optimiser has "
                    f"stepped in {LAST_LOOK} calls. Give elbo.parameters() to the optimiser, after the first call, or "
                    "use NVIL(learning_rate=...).",
                    stacklevel=5,
                )

    def get_extra_state(self) -> dict[str, Any]:
        """The name that Pyro knows the parameters by, so that its optimisers' state fits after a reload."""
        return {"prefix": self._prefix}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take up a saved name."""
        self._prefix = state["prefix"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_watched": []}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, state in self._waiting.items():
            for name, value in state.items():
                destination[f"{prefix}{key}.{name}"] = value

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for full, value in state_dict.items():
            if full.startswith(prefix):
                key, _, rest = full[len(prefix) :].partition(".")
                if key not in self._modules and key != "_extra_state":
                    self._waiting.setdefault(key, {})[rest] = copy.deepcopy(value)  # the caller's may go on to change
        # whatever belongs to a site not known yet is kept, not unexpected
        super()._load_from_state_dict(state_dict, prefix, local_metadata, False, missing_keys, [], error_msgs)  # type: ignore[arg-type]
