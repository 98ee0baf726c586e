"""Private names of other packages: each is listed, stands in one file, and is still there in the installed release."""

import argparse
import ast
import platform
import re
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import samparser

ROOT = Path(samparser.__file__).parent
# Documented in spite of their underscore, of namedtuples, enumerations (not `_name_`, `_sort_order_` and so on) and os.
PUBLIC = {"_asdict", "_fields", "_replace", "_make", "_exit"}
# What Python and torch put into a class by themselves.
NOT_WRITTEN = {"_abc_impl", "_is_protocol", "_is_runtime_protocol", "_backward_cls"}


class Private(NamedTuple):
    """A private name of another package."""

    package: str  # where it comes from
    file: str  # the one file of samparser that uses it
    owner: str  # whose name it is: an import path, or one of `made_by_hand`
    why: str  # what no public name does


PEFT_TUNER = "peft.tuners.tuners_utils.BaseTuner"
OVERRIDDEN = "the hook that PEFT gives to methods; all of PEFT's own override it"
HOOKS = "the lean decoder must see whether somebody watches a module inside it; torch has no public list of hooks"
ENUM = "PEFT takes only members of its PeftType enumeration, which Python has no public way to extend"
ARGPARSE = "argparse has no public list of options, nor a public way to lay out their help"

PRIVATE = {
    "_apply": Private("torch", "tuner/adapter_layer.py", "torch.nn.Module", "a conversion must not round coefficients"),
    "_backward_hooks": Private("torch", "sam/lean.py", "a linear layer", HOOKS),
    "_backward_pre_hooks": Private("torch", "sam/lean.py", "a linear layer", HOOKS),
    "_forward_hooks": Private("torch", "sam/lean.py", "a linear layer", HOOKS),
    "_forward_pre_hooks": Private("torch", "sam/lean.py", "a linear layer", HOOKS),
    "_conv_forward": Private(
        "torch", "tuner/factored.py", "torch.nn.Conv2d", "a convolution with another kernel, padding modes included"
    ),
    "_output_padding": Private(
        "torch", "tuner/transposed.py", "torch.nn.ConvTranspose2d", "the padding that a wanted output size asks for"
    ),
    "_current_level": Private(
        "torch", "tuner/functional.py", "torch.autograd.forward_ad", "whether forward-mode differentiation is going on"
    ),
    "_version": Private("torch", "_hashing.py", "a tensor", "whether a tensor was changed in place"),
    "_orig_mod": Private("torch", "tuner/config.py", "a compiled layer", "names of weights in compiled models"),
    "_fsdp_wrapped_module": Private("torch", "tuner/model.py", "an FSDP name", "names of weights under FSDP"),
    "_cast_adapter_dtype": Private("peft", "tuner/model.py", PEFT_TUNER, "adapters stay float32 on any base"),
    "_create_and_replace": Private("peft", "tuner/model.py", PEFT_TUNER, OVERRIDDEN),
    "_get_adapter_state_dict": Private("peft", "tuner/model.py", PEFT_TUNER, OVERRIDDEN),
    "_get_module_names_tied_with_embedding": Private(
        "peft", "tuner/model.py", PEFT_TUNER, "PEFT's raises for models of vision"
    ),
    "_prepare_adapter_config": Private("peft", "tuner/model.py", PEFT_TUNER, OVERRIDDEN),
    "_prepare_model": Private("peft", "tuner/model.py", PEFT_TUNER, OVERRIDDEN),
    "_remap_adapter_state_dict_for_load": Private("peft", "tuner/model.py", PEFT_TUNER, OVERRIDDEN),
    "_remove_adapter_name_from_key": Private("peft", "tuner/model.py", PEFT_TUNER, OVERRIDDEN),
    "_replace_module": Private("peft", "tuner/model.py", PEFT_TUNER, OVERRIDDEN),
    "_move_adapter_to_device_of_base_layer": Private(
        "peft", "tuner/layer.py", "peft.tuners.tuners_utils.BaseTunerLayer", "PEFT's also rounds the coefficients"
    ),
    "_load_from_checkpoint": Private(
        "transformers", "training/fit.py", "transformers.Trainer", "loads weights of a checkpoint without training on"
    ),
    "_name_or_path": Private(
        "transformers", "features/keys.py", "a saved configuration", "an entry of config.json that changes no feature"
    ),
    "_valid_processor_keys": Private(
        "transformers", "sam/square_settings.py", "", "an entry that older releases wrote to preprocessor_config.json"
    ),
    "_hf_hook": Private("accelerate", "tuner/targets.py", "an offloaded layer", "whether a hook lends it weights"),
    "_instances": Private("tqdm", "cli/running.py", "tqdm.tqdm", "which progress bars are still shown"),
    "_actions": Private("Python", "cli/parser.py", "argparse.ArgumentParser()", ARGPARSE),
    "_expand_help": Private("Python", "cli/parser.py", "argparse.HelpFormatter", ARGPARSE),
    "_format_action_invocation": Private("Python", "cli/parser.py", "argparse.HelpFormatter", ARGPARSE),
    "_processes": Private("Python", "compare/on_pool.py", "a pool", "kill_workers is there from Python 3.14 on"),
    "_name_": Private("Python", "tuner/registration.py", "peft.PeftType.LORA", ENUM),
    "_value_": Private("Python", "tuner/registration.py", "peft.PeftType.LORA", ENUM),
    "_sort_order_": Private("Python", "tuner/registration.py", "peft.PeftType.LORA", ENUM),
    "_member_map_": Private("Python", "tuner/registration.py", "peft.PeftType", ENUM),
    "_member_names_": Private("Python", "tuner/registration.py", "peft.PeftType", ENUM),
    "_value2member_map_": Private("Python", "tuner/registration.py", "peft.PeftType", ENUM),
}
BY_TEXT = ("getattr", "hasattr", "setattr", "delattr")
# Names that stand in texts alone, so that no walk over the code tells them from our own words.
IN_TEXTS = {
    "_fsdp_wrapped_module",
    "_name_or_path",
    "_orig_mod",
    "_valid_processor_keys",
}


def sources() -> dict[str, ast.Module]:
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")
    }


def is_private(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"_[A-Za-z]\w*", name) is not None and name not in PUBLIC


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def defined_by(tree: ast.Module) -> set[str]:
    """Names that the classes of a file define: methods, attributes of the class, and what is assigned to `self`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    names.add(part.name)
                elif isinstance(part, ast.Assign | ast.AnnAssign):
                    names |= {n.id for n in ast.walk(part) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    return names


def used_by(tree: ast.Module, ours: set[str]) -> set[str]:
    """Private names of others that a file reads, sets or imports; after `super()` our own definition is no excuse."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            above = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) == "super"
            names |= {node.attr} if above else {node.attr} - ours
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in BY_TEXT:
            names |= {word.value for word in node.args[1:2] if isinstance(word, ast.Constant)} - ours
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and not str(node.module).startswith("samparser"):
            names |= {alias.name for alias in node.names} | set(str(node.module).split("."))
        elif isinstance(node, ast.Import):
            names |= {part for alias in node.names if alias.name[:9] != "samparser" for part in alias.name.split(".")}
    return {name for name in names if is_private(name)}


def overridden() -> dict[str, set[str]]:
    """Private names of a class of another package that a class of ours defines anew, with our files."""
    found: dict[str, set[str]] = {}
    for module in walk_packages(samparser.__path__, "samparser."):
        if module.name.endswith("__main__"):
            continue
        here = import_module(module.name)
        for cls in vars(here).values():
            if not isinstance(cls, type) or cls.__module__ != here.__name__:
                continue
            for above in cls.__mro__[1:]:
                if not above.__module__.startswith("samparser"):
                    for name in filter(is_private, vars(cls).keys() & vars(above).keys() - NOT_WRITTEN):
                        file = Path(str(here.__file__)).relative_to(ROOT).as_posix()
                        found.setdefault(name, set()).add(file)
    return found


def uses() -> dict[str, set[str]]:
    trees = sources()
    ours = set().union(*map(defined_by, trees.values()))
    found = overridden()
    for file, tree in trees.items():
        for name in used_by(tree, ours):
            found.setdefault(name, set()).add(file)
    return found


def test_every_private_name_of_another_package_is_listed():
    assert set(uses()) == set(PRIVATE) - IN_TEXTS


def test_each_stands_in_one_file():
    found = uses() | {
        name: {
            path.relative_to(ROOT).as_posix()
            for path in ROOT.rglob("*.py")
            if re.search(rf"[\"']{name}\b", path.read_text(encoding="utf-8"))
        }
        for name in IN_TEXTS
    }
    # A layer with more than its coefficients to keep adds to what all layers with an adapter do.
    found["_apply"] -= {"tuner/layer.py"}
    assert {name: sorted(files) for name, files in found.items()} == {
        name: [private.file] for name, private in PRIVATE.items()
    }


def offloaded_layer() -> nn.Module:
    from accelerate.hooks import ModelHook, add_hook_to_module

    return add_hook_to_module(nn.Linear(1, 1), ModelHook())


def names_of(words: Any) -> Any:
    """Something that has the words as attributes."""
    return argparse.Namespace(**dict.fromkeys(words))


def fsdp_prefix() -> str:
    from torch.distributed.fsdp import _common_utils

    return str(_common_utils.FSDP_WRAPPED_MODULE)


def saved_configuration() -> dict[str, Any]:
    from transformers import SamConfig

    return SamConfig().to_dict()


MADE_BY_HAND = {
    "a linear layer": lambda: nn.Linear(1, 1),
    "a tensor": lambda: torch.ones(1),
    "a compiled layer": lambda: torch.compile(nn.Linear(1, 1)),
    "an FSDP name": lambda: names_of([fsdp_prefix()]),
    "a saved configuration": lambda: names_of(saved_configuration()),
    "an offloaded layer": offloaded_layer,
    "argparse.ArgumentParser()": argparse.ArgumentParser,
    "a pool": lambda: ProcessPoolExecutor(1),
}


def found(owner: str) -> Any:
    if owner in MADE_BY_HAND:
        return MADE_BY_HAND[owner]()
    parts = owner.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise ImportError(owner)


@pytest.mark.parametrize("name", [name for name, private in PRIVATE.items() if private.owner])
def test_the_installed_release_still_has_it(name):
    private = PRIVATE[name]
    release = platform.python_version() if private.package == "Python" else version(private.package)
    assert hasattr(found(private.owner), name), (
        f"{private.package} {release} has no {name} in {private.owner} any more, which samparser/{private.file} uses: "
        f"{private.why}. Mend that file, or exclude this release in pyproject.toml."
    )


def test_the_walk_sees_every_way_of_using_a_private_name():
    code = """
import torch._inner
from torch._C import _more
class Ours(Base):
    _mine: int = 1
    def _own(self):
        self._kept = super()._own()
        self._theirs()
        return self._mine + other._seen + getattr(other, "_asked", 0)
other._given = other._kept
"""
    tree = ast.parse(code)
    expected = {"_inner", "_C", "_more", "_own", "_theirs", "_seen", "_asked", "_given"}
    assert used_by(tree, defined_by(tree)) == expected
