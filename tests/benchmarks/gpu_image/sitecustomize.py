"""Makes this environment look like an image of CUDA tools that nobody prepared for this project.

Python imports this file at its start where its folder is on PYTHONPATH. A package of the environment that is not in
``packages.txt`` then cannot be imported, and its metadata is not found. What lies elsewhere on the path can.
"""

import importlib.machinery
import importlib.metadata
import re
import sys
from pathlib import Path


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


ALLOWED = {normalized(name) for name in (Path(__file__).parent / "packages.txt").read_text().split()}
BLOCKED = {
    module
    for module, names in importlib.metadata.packages_distributions().items()
    if not any(normalized(name) in ALLOWED for name in names)
}


class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if path is None and name in BLOCKED:
            path = [entry for entry in sys.path if not entry.endswith("site-packages")]
        return super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *args, **kwargs):
        for found in super().find_distributions(*args, **kwargs):
            outside = "site-packages" not in str(found.locate_file(""))
            if outside or normalized(found.metadata["Name"] or "") in ALLOWED:
                yield found


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
