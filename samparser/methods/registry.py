"""The table of methods, and the one call that applies a method to a model.

A method is one function: it takes a model whose every parameter is frozen, adds or unfreezes what it trains, and
returns the model. The decorator `method` puts it into `METHODS`; saving, loading, merging, describing and the commands
that compare methods then work for it without another line:

    @method("norms", summary="the norms of the neck", trains_upstream=False)
    def norms(model: nn.Module, second: bool = True) -> nn.Module:
        ...
        return model
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel
from torch import nn

from samparser._words import did_you_mean
from samparser.sam.changes import mark_tuned
from samparser.sam.families import family_of
from samparser.tuner import awaited_terms, placeholder_terms

from .restoring import unchanged_on_error

Build = Callable[..., nn.Module]

_ATTRIBUTE = "samparser_method"


@dataclass(frozen=True)
class Method:
    """One way to tune a SAM.

    Attributes:
        name: What `build` and `--method` call it.
        summary: What it trains, in half a sentence.
        build: The function that applies it.
        trains_upstream: Whether anything before the input of the image encoder's neck trains. Where nothing does, the
            features that enter the neck never change and may be computed once and cached.
        paper: Where it stands in the paper.
        not_mergeable_because: Why the tuned model cannot be written as a plain model of the base's architecture; None
            where it can.
    """

    name: str
    summary: str
    build: Build = field(repr=False)
    trains_upstream: bool
    paper: str | None = None
    not_mergeable_because: str | None = None

    @property
    def mergeable(self) -> bool:
        """Whether the tuned model can be written as a plain model of the base's architecture."""
        return self.not_mergeable_because is None

    @property
    def options(self) -> dict[str, Any]:
        """The options of the method with their defaults."""
        parameters = list(inspect.signature(self.build).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}


METHODS: dict[str, Method] = {}


@dataclass(frozen=True)
class AppliedMethod:
    """Which method made a tuned model: kept on the model so that it can be saved and built again.

    Attributes:
        name: Name of the method.
        options: Its options, all of them.
        trained: Names of the tensors that differ from the base model: parameters that train, also those of terms that
            an expansion has yet to get, buffers that the method added, and the running statistics of batch norms that
            train.
    """

    name: str
    options: dict[str, Any]
    trained: tuple[str, ...]


def method(
    name: str,
    *,
    summary: str,
    trains_upstream: bool,
    paper: str | None = None,
    not_mergeable_because: str | None = None,
) -> Callable[[Build], Build]:
    """Register the decorated function as the method called `name`.

    The function is called as `function(model, **options)`. Every parameter of `model` is frozen when it arrives. All
    options need defaults that JSON can hold, so that a saved model can be built again. The rest is told in `Method`.

    Raises:
        ValueError: Another method has this name.
        TypeError: An option has no default, or the function takes `**options`, which would swallow typing errors.
    """

    def register(function: Build) -> Build:
        if name in METHODS:
            raise ValueError(f"There is a method {name!r} already ({METHODS[name].summary}). Choose another name.")
        for parameter in list(inspect.signature(function).parameters.values())[1:]:
            if parameter.default is inspect.Parameter.empty:
                raise TypeError(
                    f"Option {str(parameter)!r} of method {name!r} has no default. Every option needs one, and each "
                    f"must be named in the function's signature."
                )
        METHODS[name] = Method(name, summary, function, trains_upstream, paper, not_mergeable_because)
        return function

    return register


def get_method(name: str) -> Method:
    """Return the method called `name`; the error for an unknown name lists the known ones."""
    if name not in METHODS:
        raise ValueError(
            f"There is no method {name!r}.{did_you_mean(name, METHODS)} The methods are: {', '.join(METHODS)}."
        )
    return METHODS[name]


def build(name: str, model: nn.Module, **options: Any) -> nn.Module:
    """Apply the method `name` to a model: freeze everything, then add and unfreeze what the method trains.

    The model is changed in place, and is as it was where that fails; use what is returned. Its forward has the
    signature of the plain model. Options that are not given take the method's defaults (`METHODS[name].options`).

    Raises:
        ValueError: The method is unknown, or the model was already given to a method.
        TypeError: The method has no such option, or the model is of no family or lacks what the method trains.
    """
    chosen = get_method(name)
    unknown = sorted(set(options) - set(chosen.options))
    if unknown:
        raise TypeError(
            f"Method {name!r} has no option {', '.join(map(repr, unknown))}. "
            + (f"Its options are {chosen.options}." if chosen.options else "It has no options.")
        )
    family_of(model, f"Method {name!r}")
    refuse_tuned(model, f"method {name!r}")
    options = {**chosen.options, **options}
    try:
        json.dumps(options)
    except TypeError as error:
        raise TypeError(f"The options of method {name!r} must be values that JSON can hold: {error}.") from error
    base_buffers = {key for key, _ in model.named_buffers()}
    with unchanged_on_error(model):
        model.requires_grad_(False)
        tuned = chosen.build(model, **options)
    persistent = tuned.state_dict().keys()
    trained = [key for key, parameter in tuned.named_parameters() if parameter.requires_grad]
    changing = _running_statistics(tuned)
    trained += [
        key for key, _ in tuned.named_buffers() if key in persistent and (key not in base_buffers or key in changing)
    ]
    trained += [f"base_model.model.{layer}.svd_coefficient_c.default" for layer in awaited_terms(tuned)]
    set_applied_method(tuned, AppliedMethod(name, options, tuple(trained)))
    return tuned


def _running_statistics(model: nn.Module) -> set[str]:
    """Return the names of what batch norms whose parameters train keep of the batches that they saw."""
    return {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if getattr(module, "track_running_stats", False) and any(p.requires_grad for p in module.parameters())
        for key, _ in module.named_buffers(recurse=False)
    }


def applied_method(model: nn.Module) -> AppliedMethod | None:
    """Return what `build` or `load_trained` left on the model; None for any other model."""
    return getattr(model, _ATTRIBUTE, None)


def set_applied_method(model: nn.Module, applied: AppliedMethod | None) -> None:
    """Leave on the model which method made it, or take that away."""
    if not isinstance(model, PeftModel):  # whose adapters tell by themselves
        mark_tuned(model, applied is not None and bool(applied.trained))
    if applied is not None:
        setattr(model, _ATTRIBUTE, applied)
    elif applied_method(model) is not None:
        delattr(model, _ATTRIBUTE)


def with_placeholders(model: nn.Module) -> nn.Module:
    """Give an expansion that waits for its directions arbitrary ones, and return the model: to count and time it."""
    adapter = getattr(model, "active_adapter", None)
    if isinstance(adapter, str):
        placeholder_terms(model, adapter)
    return model


def refuse_tuned(model: nn.Module, wanted: str) -> None:
    """Raise a ValueError if the model already carries a method or an adapter."""
    applied = applied_method(model)
    if applied is not None or isinstance(model, PeftModel):
        adapters = ", ".join(map(repr, getattr(model, "peft_config", {})))
        carried = f"method {applied.name!r}" if applied is not None else f"PEFT adapters ({adapters})"
        raise ValueError(
            f"This model already carries {carried}; {wanted} needs a base model. Load the base model again, or take "
            f"`samparser.methods.merged(model)` where the earlier tuning is meant to stay."
        )
