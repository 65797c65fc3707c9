"""What one program needs of its modules: unused definitions out, constant arguments in, again until nothing changes."""

from collections.abc import Collection, Mapping

from pgolf.package.arguments import settle
from pgolf.package.fold import Folder
from pgolf.package.shake import shake


def reduce(sources: Mapping[str, str], entry: str, names: Collection[str]) -> dict[str, str]:
    """The rest of the modules `sources` for a program that calls `names` of the module `entry`, by module name.

    Comments are gone; statements are laid out anew. Raises PgolfError for relative and star imports.
    """
    folder = Folder()
    rest = shake(sources, entry, names)
    while True:
        before = rest
        rest = shake(folder.fold(settle(rest)), entry, names)
        if rest == before:
            return rest
