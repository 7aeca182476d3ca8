"""Studies that build on others (`extends`), and entries that build on others (`like`), written out in full.

One rule for both: mappings merge key by key, and anything else replaces what was inherited; so does a mapping that
names another `kind` or `model_type`, because its keys mean something else. The result is a study without either key,
which the typed configuration checks: ids and specs do not depend on how a study was written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from effllm.errors import UserError
from effllm.fields import shortened, suggestion
from effllm.study.reading import read_yaml

EXTENDS = "extends"
LIKE = "like"
# A mapping with another value here is of another form.
_TAGS = ("kind", "model_type")
_LONGEST_CHAIN = 50
# Where the shipped studies and presets lie: a study elsewhere names them as if it lay there too.
SHIPPED = Path(__file__).resolve().parents[2] / "config"


def read_study(path: str | Path) -> Any:
    """The plain study in a file, without `extends` and `like`; `UserError` names the file, the key and the remedy."""
    return written_out(read_yaml(path), source=str(path), folder=Path(path).parent)


def written_as_yaml(path: str | Path) -> str:
    """The study in a file as YAML without `extends` and `like`: a study of its own with the same specs."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(read_study(path), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def written_out(raw: Any, source: str, folder: Path) -> Any:
    """A parsed study without `extends` and `like`. Files are looked for in `folder`, then in `SHIPPED`.

    What is not a study (no mapping, or no mapping of entries) is passed on as it is, to be refused by the types.
    """
    return _without_like(_without_extends(raw, source, folder, ()), source)


def merge(inherited: Any, own: Any) -> Any:
    """`own` over `inherited`, by the rule of this module; neither is changed."""
    if not (isinstance(inherited, Mapping) and isinstance(own, Mapping)):
        return own
    if any(tag in own and tag in inherited and own[tag] != inherited[tag] for tag in _TAGS):
        return own
    return {
        **inherited,
        **{key: merge(inherited[key], value) if key in inherited else value for key, value in own.items()},
    }


def _without_extends(raw: Any, source: str, folder: Path, below: tuple[Path, ...]) -> Any:
    if not isinstance(raw, Mapping) or EXTENDS not in raw:
        return raw
    named = raw[EXTENDS]
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{source}: {EXTENDS}: {shortened(named)} is not a file; name one, or a list of them.")
    study: Any = {}
    for name in names:
        path = _find(name, folder, source)
        if path in below:
            raise UserError(f"{source}: {EXTENDS}: {name!r:.100} extends this study itself; take one of the two out.")
        if len(below) > _LONGEST_CHAIN:
            raise UserError(f"{source}: {EXTENDS}: over {_LONGEST_CHAIN} files in a row; write this one out.")
        base = _without_extends(read_yaml(path), str(path), path.parent, (*below, path))
        if not isinstance(base, Mapping):
            raise UserError(f"{path} holds no study to extend: it must be a mapping with the keys of a study.")
        study = merge(study, base)
    return merge(study, {key: value for key, value in raw.items() if key != EXTENDS})


def _find(name: str, folder: Path, source: str) -> Path:
    for root in (folder, SHIPPED):
        path = root / name
        try:
            if path.is_file():
                return path.resolve()
        except (OSError, ValueError):
            break
    presets = sorted(str(path.relative_to(SHIPPED)) for path in SHIPPED.glob("**/*.yaml"))
    raise UserError(f"{source}: {EXTENDS}: {shortened(name)} does not exist; {suggestion(name, presets)}.")


def _without_like(raw: Any, source: str) -> Any:
    if not isinstance(raw, Mapping):
        return raw
    return {section: _entries(entries, f"{source}: {section}") for section, entries in raw.items()}


def _entries(entries: Any, where: str) -> Any:
    if not isinstance(entries, Mapping):
        return entries
    done: dict[Any, Any] = {}

    def entry(id: Any, below: tuple[Any, ...]) -> Any:
        if id in done:
            return done[id]
        own = entries[id]
        if isinstance(own, Mapping) and LIKE in own:
            other = own[LIKE]
            if not isinstance(other, str) or other not in entries:
                known = [key for key in entries if isinstance(key, str) and key != id]
                raise UserError(
                    f"{where}.{id!s:.64}.{LIKE}: {shortened(other)} does not exist; {suggestion(str(other), known)}."
                )
            if other == id or other in below:
                raise UserError(f"{where}.{id!s:.64}.{LIKE}: {other!r:.64} is like this entry itself; write one out.")
            if len(below) > _LONGEST_CHAIN:
                raise UserError(
                    f"{where}.{id!s:.64}.{LIKE}: over {_LONGEST_CHAIN} entries in a row; write this one out."
                )
            own = merge(entry(other, (*below, id)), {key: value for key, value in own.items() if key != LIKE})
        done[id] = own
        return own

    return {id: entry(id, ()) for id in entries}
