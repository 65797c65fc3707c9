"""The modules of the program inside a packaged script, made for one run.

The run's settings and facts about it are constants in it, but for how long to train, which its own options change.
What then has no use is gone, and so is what only people read.
"""

import functools
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgolf.package import imports
from pgolf.package.link import link
from pgolf.package.minify import minify
from pgolf.package.reduce import reduce
from pgolf.package.shake import shake
from pgolf.package.specialize import bake, specialize
from pgolf.package.terse import terse

PACKAGES = ("pgolf", "stages")
_FREE = ("iterations", "seconds")


@dataclass(frozen=True)
class Program:
    sources: Mapping[str, str]
    """The modules as they stand in the repository, by dotted name."""
    modules: Mapping[str, str]
    """The same as they go into the script, in the order in which they run in one namespace."""
    libraries: tuple[str, ...]
    """Top-level names that they import from elsewhere."""


def make(entry: str, config: Mapping[str, Any], on_gpu: bool) -> Program:
    """The program that calls `main` of the module `entry`. config: every section, as plain values.

    on_gpu: whether the run, or a score of it, was made on a GPU. Otherwise the program is one for the CPU; one for the
    GPU does without kernels for the CPU, where it is slower, not different.
    """
    used = dict(config) | {"package": {"coder": config["package"]["coder"]}}
    return _make(entry, json.dumps(used), on_gpu)


@functools.cache
def _make(entry: str, text: str, on_gpu: bool) -> Program:
    config = json.loads(text)
    facts = {"directory.coder": config["package"]["coder"], "configs.to_dict(self.config)['model']": config["model"]}
    if on_gpu:
        facts |= {"_use_kernels(model, notes)": False}  # those in C are for the CPU
    else:
        facts |= {"is_cuda": False, "device.type": "cpu", "torch.cuda.is_available()": False}
    settled = {key: values for key, values in config.items() if isinstance(values, dict)}
    settled["train"] = {key: value for key, value in settled["train"].items() if key not in _FREE}
    sources = imports.follow([entry], PACKAGES)
    special = {name: terse(name, source) for name, source in specialize(sources, settled, facts).items()}
    modules = reduce(bake(shake(special, entry, ["main"]), config), entry, ["main"])
    modules = shake(bake(modules, config), entry, ["main"])  # of what nothing asks for any more
    linked = link(modules, entry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a constant that is called
        for name, source in linked.items():
            compile(source, name, "exec")
    return Program(
        sources={name: sources[name] for name in modules},
        modules={name: minify(source) for name, source in linked.items()},
        libraries=tuple(imports.third_party(modules)),
    )
