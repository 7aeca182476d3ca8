"""`effllm fetch`: all that targets need of the network, into the hub's cache, so that they run without one."""

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import constants

from effllm.errors import UserError
from effllm.hub.repository import Download, fetch_all
from effllm.planning.needs import Need, address_of, needs_of, uses_network
from effllm.planning.nodes import Node, nodes_behind, targets_of
from effllm.planning.options import add_study, graph_of
from effllm.planning.state import states_of
from effllm.runtime.progress import Progress
from effllm.runtime.stage import SCRATCH
from effllm.stages import STAGES
from effllm.stages.graph import Graph

_PARALLEL_LISTS = 4
_PARALLEL_TRANSFERS = 8


def register(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    command.add_argument("targets", nargs="*", metavar="TARGET", help="results/table9.csv, table9, corpus/ID, ...")
    add_study(command)
    command.set_defaults(run=lambda arguments: run(graph_of(arguments), arguments.targets))


def run(graph: Graph, targets: Sequence[str]) -> int:
    """Fetch what the targets (all tables if none is named) need and do not have.

    What is there already stays, a killed run is taken up, and every file is compared with its digest. `UserError`
    before the first byte, with a line for each repository or address that does not give it out.
    """
    nodes = pending(graph, targets)
    needs = find_needs(graph, nodes)
    addresses = [(node, address) for node in nodes if (address := address_of(graph, node)) is not None]
    if not needs and not addresses:
        print("Nothing is to be fetched: what the targets need from the hub is built, or they need nothing.")
        return 0
    _fetch_whole([need for need in needs if not need.is_limit])
    for node in nodes:
        _fetch_limited(graph, node, [need for need in needs if need.is_limit and need.node == node.name])
    for node, address in addresses:
        size_b = address.into_cache().stat().st_size
        print(f"{node.name}: {address.url}, {size_b / 1e6:,.3f} MB", flush=True)
    print(f"All of it is in {constants.HF_HUB_CACHE}; with HF_HUB_OFFLINE=1 the targets run without a network.")
    return 0


def _fetch_whole(needs: Sequence[Need]) -> None:
    """Fetch all files beside each other."""
    downloads: dict[Path, Download] = {}
    for need in needs:
        downloads |= {download.target: download for download in need.repository.into_cache(need.files)}
    if not downloads:
        return
    size_b = sum(download.file.size for download in downloads.values())
    repositories = len({need.repository.label for need in needs})
    print(f"{len(downloads)} files of {repositories} repositories, {size_b / 1e9:,.3f} GB", flush=True)
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    with Progress(size_b, unit="bytes", label="fetching") as bar:
        fetch_all(list(downloads.values()), cache, bar, _PARALLEL_TRANSFERS)
    for need in needs:
        need.repository.link(need.files)


def _fetch_limited(graph: Graph, node: Node, needs: Sequence[Need]) -> None:
    """Fetch the files of a node in their order, and read them as its stage will, until its limit is met."""
    if not needs:
        return
    most, most_b = sum(len(need.files) for need in needs), sum(need.size_b for need in needs)
    print(f"{node.name}: at most {most} files, {most_b / 1e9:,.3f} GB, until its token budget is met", flush=True)
    scratch = Path(graph.results, SCRATCH)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=scratch) as folder:
        taken = STAGES[node.stage].fetch_limited(graph.study, node.id, Path(folder))
    assert taken is not None
    repository, files = taken
    # Those of its form are small, and may have been read without the cache.
    _fetch_whole([Need(node.name, repository, files)])
    size_b = sum(file.size for file in files)
    print(f"{node.name}: {len(files)} of {most} files, {size_b / 1e9:,.3f} GB", flush=True)


def pending(graph: Graph, targets: Sequence[str]) -> list[Node]:
    """The nodes behind the targets that are to be built and use the network."""
    wanted = targets_of(graph, targets)
    states = states_of(graph, nodes_behind(graph, wanted), wanted)
    return [state.node for state in states.values() if not state.up_to_date and uses_network(graph, state.node)]


def find_needs(graph: Graph, nodes: Iterable[Node]) -> list[Need]:
    """What these nodes need; `UserError` with a line for each that cannot have it."""

    def find(node: Node) -> list[Need] | UserError:
        try:
            address = address_of(graph, node)
            if address is not None:
                # Whether it is there at all.
                address.size_b()
            needs = needs_of(graph, node)
            for need in needs:
                # The list of a gated repository is open to all, its files are not: the largest is the one to ask for.
                for file in sorted(need.files, key=lambda file: file.size)[-1:]:
                    need.repository.require_access(file)
            return needs
        except UserError as error:
            return UserError(f"{node.name}: {error}")

    with ThreadPoolExecutor(_PARALLEL_LISTS) as pool:
        found = list(pool.map(find, nodes))
    refused = [str(answer) for answer in found if isinstance(answer, UserError)]
    if refused:
        raise UserError("\nerror: ".join(refused))
    return [need for answer in found if not isinstance(answer, UserError) for need in answer]
