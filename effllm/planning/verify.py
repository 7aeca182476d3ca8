"""`effllm verify`: every digest of every payload, record, manifest and table, and that each is in its own place."""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from effllm.errors import UserError
from effllm.models.checkpoint.files import stray_names
from effllm.planning.state import provenance
from effllm.runtime.artifact import MANIFEST, PROVENANCE, PUBLISHED, RECORDS, Artifact
from effllm.runtime.progress import progress
from effllm.tables.record import damage_of_table, recorded_tables

_THREADS = 4


def register(command: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs."""
    command.add_argument("results", type=Path, nargs="?", default=Path("results"), help="artifacts (default: results)")
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read every payload and every record; 1 if any is damaged."""
    found = verify(arguments.results)
    tables = {table: damage_of_table(table) for table in recorded_tables(arguments.results)}
    damaged = {name: sentences for name, sentences in found.items() if sentences}
    damaged_tables = {table.name: [sentence] for table, sentence in tables.items() if sentence}
    if arguments.json:
        content = {"artifacts": len(found), "damaged": damaged | damaged_tables}
        print(json.dumps(content, indent=1))
        return 1 if damaged or damaged_tables else 0
    for sentences in (damaged | damaged_tables).values():
        print("\n".join(sentences))
    print(f"{len(found)} artifacts, {len(damaged)} damaged")
    if damaged_tables:
        print(f"Delete to have them assembled again: {' '.join(f'{arguments.results}/{t}' for t in damaged_tables)}")
    if damaged:
        print("Delete their directories and name them to be built again: snakemake --profile profiles/... --", end=" ")
        print(*(f"{arguments.results}/{name}/{MANIFEST}" for name in damaged))
    return 1 if damaged or damaged_tables else 0


def verify(results: Path) -> dict[str, list[str]]:
    """What is wrong with each artifact below `results`, by its name; an empty list for one that is whole."""
    if not results.is_dir():
        raise UserError(f"{results} is not a directory; name the one that holds the artifacts.")
    manifests = sorted(results.glob(f"[!.]*/*/{MANIFEST}"))
    with ThreadPoolExecutor(_THREADS) as pool:
        damages = pool.map(lambda path: list(damage_of(path)), manifests)
        counted = progress(damages, len(manifests), unit="artifacts", label="verifying")
        return {f"{path.parts[-3]}/{path.parts[-2]}": found for path, found in zip(manifests, counted, strict=True)}


def damage_of(manifest: Path) -> Iterator[str]:
    """One sentence per file that is missing, altered, of nobody's list or elsewhere, and for an unreadable manifest."""
    try:
        artifact = Artifact.open(manifest)
    except UserError as error:
        yield str(error)
        return
    misplaced = artifact.misplaced()
    if misplaced:
        yield misplaced
    yield from artifact.edited()
    yield from artifact.damage()
    records = provenance(artifact).get("records")
    if not isinstance(records, dict):
        yield f"{manifest.with_name(PROVENANCE)} is missing or not readable"
        records = {}
    else:
        try:
            yield from artifact.damaged_records()
        except UserError as error:
            yield str(error)
    listed = {*artifact.manifest.payload, *records, MANIFEST, PUBLISHED, PROVENANCE}
    for path in sorted(artifact.directory.rglob("*")):
        name = path.relative_to(artifact.directory).as_posix()
        is_record_without_list = not records and name.startswith(f"{RECORDS}/")
        if path.is_file() and name not in listed and not is_record_without_list:
            yield f"{path} is in no list of the artifact"
    yield from stray_names(artifact.directory)
