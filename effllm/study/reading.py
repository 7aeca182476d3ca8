"""Read the YAML of a study: text in UTF-8, of a size that a study can have, with every mistake in one sentence."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from effllm.errors import UserError

# The largest study here has 16 kB and 12,000 nodes. Beyond these bounds a file holds something else, or expands its
# anchors to more than any memory holds.
_LARGEST_BYTES = 2_000_000
_MOST_NODES = 300_000
_DEEPEST = 50
_BYTE_ORDER_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """YAML in which a repeated key of a mapping is an error, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _at(key_node, f"a {type(key).__name__} cannot be a key: write a word")
            if key in seen:
                raise _at(key_node, f"the key {key!r:.60} stands twice: delete one")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise _at(node, f"{node.value!r:.40} cannot be read ({error!s:.80}); put text into quotes") from None


def read_yaml(path: str | Path) -> Any:
    """The plain values in a YAML file; `UserError` names the file, the line and the remedy."""
    text = _read_text(path)
    try:
        _check_size(text, path)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_expansion(node, path)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        # The text has no name for the reader.
        problem = " ".join(str(error).split()).replace(' in "<unicode string>",', ", at")
        mark = getattr(error, "problem_mark", None)
        line = "".join(text.split("\n")[mark.line : mark.line + 1]) if mark else ""
        if mark and line[mark.column : mark.column + 1] == "\t":
            problem = f"a tab, at line {mark.line + 1}, column {mark.column + 1}; indent with spaces"
        raise UserError(f"{path} is not valid YAML: {problem:.300}.") from None


def _read_text(path: str | Path) -> str:
    try:
        with open(path, "rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a path cannot hold a null character"
        raise UserError(f"{path!s:.200}: {reason}; name an existing study file.") from None
    if len(content) > _LARGEST_BYTES:
        raise UserError(f"{path} is larger than {_LARGEST_BYTES} bytes, so it is not a study; name a study file.")
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise UserError(f"{path} is text in {encoding}; save it as UTF-8.")
    if b"\0" in content:
        raise UserError(f"{path} is binary, not YAML; name a study file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8 (Latin-1?); save the file as UTF-8."
        ) from None


def _check_size(text: str, path: str | Path) -> None:
    """Before anything recursive reads it: the nesting, and the number of nodes."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Base)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST or count > _MOST_NODES:
            assert event.start_mark is not None
            line = event.start_mark.line + 1
            what = f"nests deeper than {_DEEPEST} levels" if depth > _DEEPEST else f"holds over {_MOST_NODES} values"
            raise UserError(f"{path}, line {line}: it {what}, as no study does; correct it.")


def _check_expansion(root: yaml.Node, path: str | Path) -> None:
    """Aliases repeat what their anchors hold: refuse those that hold themselves, or multiply without bound."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise UserError(f"{path}, line {node.start_mark.line + 1}: this anchor contains itself; write it out.")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
            sizes[id(node)] = 1 + sum(map(size, parts))
            open_nodes.discard(id(node))
        return sizes[id(node)]

    if size(root) > _MOST_NODES:
        raise UserError(f"{path}: its aliases expand to over {_MOST_NODES} values; write a study without them.")


def _at(node: yaml.Node, message: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)
