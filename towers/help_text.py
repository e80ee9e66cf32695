"""The part of `towers <job> --help` that says what each setting means: read from the docstrings of the config dataclasses."""

import dataclasses
import inspect
import textwrap


def meanings(schema: type) -> str:
    """A paragraph for each group of settings of a config dataclass, nested ones after their parent."""
    return "\n\n".join(_paragraphs(schema, ""))


def _paragraphs(schema: type, where: str) -> list[str]:
    found = []
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type) and isinstance(field.type, type):
            name = where + field.name
            found += [f"{name}: {_description(field.type)}", *_paragraphs(field.type, f"{name}.")]
    return found


def _description(schema: type) -> str:
    """The docstring's summary, and its Attributes as they stand there."""
    summary, _, attributes = (inspect.getdoc(schema) or "").partition("\n\nAttributes:\n")
    text = summary if not attributes else f"{summary}\n{textwrap.dedent(attributes)}"
    return textwrap.indent(text, "    ").strip()
