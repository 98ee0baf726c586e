"""A griffe extension for the reference page: settings show a table of their fields, examples are set as code.

The help of a field stands in its metadata, where the command line reads it and static analysis sees nothing; so the
class is imported. Fields that a class inherits are left to the page of the library they come from.
"""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module
from typing import Any

import griffe


class SettingsFields(griffe.Extension):
    """Adds the fields of settings dataclasses, with type, default and help, to the docstring of their class."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Call the section of examples by the name that griffe knows, and fence examples outside of one."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^>>> .*(?:\n.+)*", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Append the table, and give the class's signature the defaults instead of the calls that make them."""
        if not any("dataclass" in str(decorator.value) for decorator in cls.decorators):
            return
        settings = getattr(import_module(cls.module.path), cls.name)
        documented = [
            part for part in dataclasses.fields(settings) if "help" in part.metadata and part.name in cls.members
        ]
        rows = []
        for part in documented:
            member = cls.members[part.name]
            member.value = _default(part)
            rows.append(
                griffe.DocstringParameter(
                    part.name, annotation=member.annotation, value=member.value, description=part.metadata["help"]
                )
            )
        if rows and cls.docstring:
            cls.docstring.parsed.append(griffe.DocstringSectionParameters(rows, title="Fields:"))


def _default(part: dataclasses.Field[Any]) -> str | None:
    if part.default_factory is not dataclasses.MISSING:
        return repr(part.default_factory())
    return None if part.default is dataclasses.MISSING else repr(part.default)
