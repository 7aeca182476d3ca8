"""The study, the ids that wildcards may take, and the functions that rules call: the only rule file with functions."""

import fcntl
import os
from pathlib import Path

from effllm.errors import UserError
from effllm.planning.state import older_code_line
from effllm.study import Graph, load_study, parse_study
from effllm.study.pattern import id_pattern
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

RESULTS = "results"
DEFAULT_STUDY = "config/tiny.yaml"
STAGE_SCRIPT = "../workflow_scripts/stage.py"
TABLE_SCRIPT = "../workflow_scripts/table.py"


def read_graph():
    """The graph of the study that `--config study=FILE` names (a profile does), of the tiny one if nothing does.

    A relative path starts at the Snakefile. A configfile is a study itself and takes the place of the named one: two
    studies are never merged.
    """
    given = {key: value for key, value in config.items() if key != "study"}
    try:
        if given:
            study = parse_study(
                given, ", ".join(map(str, workflow.configfiles)) or "--config"
            )
        else:
            study = load_study(
                Path(workflow.basedir, str(config.get("study", DEFAULT_STUDY)))
            )
        graph = Graph(study, RESULTS)
        graph.check_files()
        return graph
    except UserError as error:
        raise WorkflowError(str(error)) from None


GRAPH = read_graph()


def any_of(names):
    """A wildcard constraint that admits these names alone, so that a typo in a target is an error at once."""
    return id_pattern(names)


def only(stage):
    """A wildcard constraint that admits the ids of one stage."""
    return any_of(GRAPH.ids(stage))


def parents(stage):
    """An input function: the manifests and files that a node of `stage` is built from, by name."""
    return lambda wildcards: GRAPH.parents(stage, wildcards.id)


def spec(stage):
    """A params function: what decides the result of a node of `stage`, as one plain sorted dict."""
    return lambda wildcards: GRAPH.spec(stage, wildcards.id)


def table_parents(wildcards):
    """An input function: the manifests that a table reads, by stage."""
    return GRAPH.table_parents(wildcards.table)


def table_spec(wildcards):
    """A params function: rows, columns and labels of a table."""
    return GRAPH.table_spec(wildcards.table)


def all_cores(wildcards):
    """Every core of the run, so that a measured job shares the machine with no other."""
    return workflow.cores or 1


def tell_older_code():
    """One line at the start of a run: how many artifacts stand although the code of their stage has changed."""
    if not workflow.remote_exec:
        logger.info(older_code_line(GRAPH))


def hold_workflow_lock():
    """Refuse a second run over the same results while one is alive; the kernel frees the lock when it dies."""
    if workflow.remote_exec:
        return
    os.makedirs(RESULTS, exist_ok=True)
    stream = open(f"{RESULTS}/.lock", "a+")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.seek(0)
        raise WorkflowError(
            f"{RESULTS}/ is in use by {stream.read().strip()}: wait for it to end, or stop it."
        ) from None
    stream.truncate(0)
    stream.write(f"snakemake process {os.getpid()} on {os.uname().nodename}")
    stream.flush()
    # Kept open for the life of the process: closing it would free the lock.
    workflow.globals["_workflow_lock"] = stream
