"""Whether installed packages are of the versions that ``pyproject.toml`` asks for.

pip sees to that, unless a package was installed or upgraded later by itself. What follows then is an error about a name
or an argument that is not there, somewhere inside.
"""

from __future__ import annotations

from importlib import metadata

from bimba.types import BimbaError


def wrong_version(package: str) -> str | None:
    """Which version is installed and which was expected; None: a right one, or nothing says what is right."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in metadata.requires("bimba") or []]
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:  # a checkout that was never installed; or what its import will say
        return None
    for requirement in wanted:
        is_this = requirement.name == package and (requirement.marker is None or requirement.marker.evaluate())
        if is_this and not requirement.specifier.contains(installed, prereleases=True):
            asked = f"{package}{requirement.specifier}"
            return f"{package} {installed} is installed; expected {asked}: pip install '{asked}'"
    return None


def check_versions(*packages: str) -> None:
    """Raises a BimbaError that names all packages of a wrong version."""
    if wrong := [found for package in packages if (found := wrong_version(package))]:
        raise BimbaError("; ".join(wrong))
