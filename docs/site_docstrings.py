"""Extension of griffe for docs/api.md: what docstrings have and Markdown does not."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|data|doc|func|meth|mod):`~?([^`]+)`")


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Turn roles of Sphinx into code, and a section ``Example:`` into the ``Examples:`` that griffe reads."""
        if obj.docstring is not None:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """List the settings of a group in its docstring, each with its own: one line each, not one heading."""
        if cls.path.startswith("u2pl_fast.config.settings.") and cls.name.endswith("Settings") and cls.docstring:
            lines = []
            for name, attribute in cls.attributes.items():
                if attribute.docstring is not None:
                    text = re.sub("([*<])", r"\\\1", " ".join(attribute.docstring.value.split()))
                    lines.append(f"    {name}: {text}")
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(lines)
