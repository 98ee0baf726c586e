"""XML of other people, read without what could make it grow: no document type, and so no entities."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NoReturn

from ..sample import DataError
from .paths import check_regular


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds a tree, and stops at a document type, where entities would be declared."""

    def doctype(self, name: str, pubid: Any, system: Any) -> NoReturn:
        """Refuse the document type `name`."""
        raise DataError(
            f"declares a document type ({name}), which no annotation tool writes and which can hide entities"
        )


def read_xml(path: Path) -> ElementTree.Element:
    """Return the root of an XML file.

    Raises:
        DataError: It cannot be read, is no XML or is cut off, or declares a document type.
    """
    try:
        return ElementTree.parse(check_regular(path), ElementTree.XMLParser(target=_NoDoctype())).getroot()
    except DataError as error:
        raise DataError(f"{path} {error}." if str(error).startswith("declares") else str(error)) from None
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise DataError(f"{path} is not XML that can be read: {error}.") from error
