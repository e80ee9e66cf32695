"""Texts that were read as numbers: an id must arrive as it was typed, or not at all.

Hydra and YAML read `1_000` as 1000, `12e4` as 120000.0 and `true` as True, wherever they stand; a setting that is text then holds the text
of that number, which may be the id of somebody else.
"""

import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from towers.errors import ConfigError

_PIECE = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\\.|[^,\[\]{}()"'])+""")
"""What stands between the signs of lists, maps and sweeps."""

_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


def refuse_numbers_for_text(raw: DictConfig, typed: Sequence[str], folders: Sequence[Path]) -> None:
    """Refuse settings that are text and were read as something whose text is another one.

    Args:
        raw: the composed config.
        typed: the command line; what is no override is passed over.
        folders: of the caller's own YAML files (`--config-dir`).

    Raises:
        ConfigError: names the setting, what was typed, what was read, and how to quote it.
    """
    schema = OmegaConf.get_type(raw)
    for override in typed:
        key, sign, text = override.lstrip("+").partition("=")
        for piece, read in _misread_pieces(text) if sign and _is_text(schema, key) else ():
            quoted = text.strip().replace(piece, f'"{piece}"', 1)
            raise ConfigError(f"{_told(key, piece, read)} To mean the text, quote it twice: {key}='{quoted}'")
    for file in (file for folder in folders for file in sorted(folder.rglob("*.yaml"))):
        for key, piece, read in _misread_yaml(file, schema, _package(file, folders)):
            if str(read) in _texts(OmegaConf.select(raw, key)):
                raise ConfigError(f'{_told(key, piece, read)} To mean the text, quote it in {file}: "{piece}"')


def _told(key: str, piece: str, read: object) -> str:
    return f"{key}: got {piece}, which reads as the {'truth value' if isinstance(read, bool) else 'number'} {read}."


def _misread_pieces(text: str) -> Iterator[tuple[str, object]]:
    """Each piece of an override's value that is not the text of what Hydra reads it as, and that."""
    parser = OverridesParser.create()
    for found in _PIECE.finditer(text):
        piece = found[0].rpartition(":")[2].strip() if "{" in text else found[0].strip()
        try:
            read = parser.parse_override(f"x={piece}").value()
        except HydraException:
            continue
        if isinstance(read, (int, float)) and str(read) != piece:
            yield piece, read


def _misread_yaml(file: Path, schema: type | None, package: str) -> Iterator[tuple[str, str, object]]:
    """(key, text, what it was read as) of a file's misread texts; what cannot be read is for whoever composes it to say."""

    def walk(node: yaml.Node, key: str) -> Iterator[tuple[str, str, object]]:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                yield from walk(value, ".".join(part for part in (key, str(name.value)) if part))
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                yield from walk(value, key)
        elif isinstance(node, yaml.ScalarNode) and node.style is None and _is_text(schema, key):
            read = _composed(node.value)
            if isinstance(read, (int, float)) and str(read) != node.value:
                yield key, node.value, read

    try:
        whole = yaml.compose(file.read_text(), yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return
    if whole is not None:
        yield from walk(whole, package)


def _composed(text: str) -> object:
    """What an unquoted text of a YAML file is read as when settings are composed."""
    if "${" in text:  # put together of other settings, which are not known here
        return text
    try:
        return OmegaConf.create(f"x: {text}").x  # behind a key, where it may hold brackets and commas
    except yaml.YAMLError:
        return text


def _package(file: Path, folders: Sequence[Path]) -> str:
    """Where a file's settings go: what its head says, else the group that it lies in."""
    head = _PACKAGE.search(file.read_text(errors="replace"))
    if head and head[1] != "_group_":
        return "" if head[1] == "_global_" else head[1]
    folder = next(folder for folder in folders if file.is_relative_to(folder))
    return ".".join(file.relative_to(folder).parent.parts)


def _texts(value: Any) -> list[str]:
    if OmegaConf.is_dict(value):
        return []
    return [str(each) for each in value] if OmegaConf.is_list(value) else [str(value)]


def _is_text(schema: type | None, key: str) -> bool:
    """Whether a setting is text by its type, or a list or map of texts."""
    hint: Any = schema
    for name in key.split("."):
        arguments = typing.get_args(hint)
        if typing.get_origin(hint) is dict:
            hint = arguments[1]
        elif hint is not None and name in getattr(hint, "__dataclass_fields__", {}):
            hint = _without_none(typing.get_type_hints(hint)[name])
        else:
            return False
    arguments = typing.get_args(hint)
    return hint is str or (typing.get_origin(hint) in (list, dict) and arguments[-1] is str)


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kept = [one for one in typing.get_args(hint) if one is not type(None)]
        return kept[0] if len(kept) == 1 else hint
    return hint
