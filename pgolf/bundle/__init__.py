"""Any Python program as one self-extracting file. Nothing in here imports, or knows of, another part of pgolf.

`module_graph` finds modules by their import statements, `tree_shaking` removes code that the entry point cannot reach,
`minify` shortens the rest, `self_extracting` writes and reads the file.
"""

from pgolf.bundle.module_graph import BundleError
from pgolf.bundle.self_extracting import Bundle, Module, bundle, unpack

__all__ = ["Bundle", "BundleError", "Module", "bundle", "unpack"]
