"""The study, the ids that wildcards may take, and the functions that rules call: the only rule file with functions."""

import contextlib
import functools
from pathlib import Path

from effllm.runtime import gpu_lease, lifeline
from effllm.runtime.slurm import await_jobs_of, require_slurm
from effllm.cluster.requests import GPU_STAGES, request
from effllm.tables.paired import pairs_of
from effllm.errors import UserError
from effllm.runtime.faults import fault_of_machine, require_place, require_writable
from effllm.runtime.launch import name_interpreter
from effllm.runtime.lease import Lease
from effllm.telemetry.gpus import cores_of_gpus, least_memory_b
from effllm.telemetry.sources.base import SourceUnavailable
from effllm.stages import STAGES
from effllm.planning.state import (
    has_changed_files,
    older_code_line,
    require_readable,
    require_todays_specs,
    tables_up_to_date,
)
from effllm.runtime.stage import SCRATCH
from effllm.stages.graph import Graph
from effllm.study import load_study, parse_study
from effllm.study.pattern import id_pattern
from effllm.tables.descriptions import DESCRIPTIONS
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

RESULTS = "results"
DEFAULT_STUDY = "config/tiny.yaml"
STAGE_SCRIPT = "../workflow_scripts/stage.py"
TABLE_SCRIPT = "../workflow_scripts/table.py"
REPORT_SCRIPT = "../workflow_scripts/report.py"


def require_plain_path():
    """Snakemake formats the paths of scripts and logs: a brace in them is a placeholder to it."""
    for path in (workflow.basedir, Path.cwd()):
        if set(str(path)) & set("{}\n"):
            raise WorkflowError(
                f"the path {str(path)!r} holds a brace or a line break, which Snakemake takes for its own: "
                "move the checkout, or the working directory, to a path without them"
            )


def require_snakemake_folder():
    """Snakemake makes its folder after it has read this, in dry runs too, and ends in a traceback where it cannot."""
    if Path(".snakemake").is_dir():
        return
    try:
        require_writable(Path(".snakemake"))
    except UserError as error:
        raise WorkflowError(str(error)) from None


def read_graph():
    """The graph of the study that `--config study=FILE` names (a profile does), of the tiny one if nothing does.

    A relative path starts at the Snakefile. A configfile is a study itself and takes the place of the named one: two
    studies are never merged.
    """
    given = {
        key: value
        for key, value in config.items()
        if key not in ("study", "gpu_memory_gb")
    }
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


require_plain_path()
name_interpreter()
require_snakemake_folder()
GRAPH = read_graph()
# A job of Slurm outlives the Snakemake that submitted it.
lifeline.announce(inherit=not workflow.remote_exec)


def any_of(names):
    """A wildcard constraint that admits these names alone, so that a typo in a target is an error at once."""
    return id_pattern(names)


def only(stage):
    """A wildcard constraint that admits the ids of one stage."""
    return any_of(GRAPH.ids(stage))


@contextlib.contextmanager
def ending_in_a_sentence():
    """End with a sentence: Snakemake would wrap any other exception of an input function, and print a traceback."""
    try:
        yield
    except (UserError, OSError) as error:
        sentence = (
            error
            if isinstance(error, UserError)
            else fault_of_machine(error, Path(RESULTS))
        )
        raise SystemExit(f"error: {sentence or error}") from None


@functools.cache
def enter_run():
    """Before the first node of a run is looked at: take the results, and let jobs of an earlier run end.

    Called by input functions: Snakemake has chosen its executor by then, and has neither read the state of any file
    nor deleted an output. Dry runs, summaries and the jobs of a run do without.
    """
    is_run = workflow.executor_plugin is not None and not workflow.dryrun
    if not is_run or not workflow.is_main_process:
        return
    on_slurm = workflow.executor_plugin.name == "slurm"
    with ending_in_a_sentence():
        for folder in (".snakemake", "logs", Path(RESULTS, SCRATCH)):
            require_writable(Path(folder))
        if on_slurm:
            require_slurm()
        elif "gpu" in workflow.global_resources:
            take_gpus()
        lock = Lease(Path(RESULTS, SCRATCH, "workflow"), f"{RESULTS}/")
        lock.acquire(wait=False)
        # Held for the life of the process: the lease ends with it.
        workflow.globals["_workflow_lock"] = lock
        if on_slurm:
            await_jobs_of(Path.cwd())
        lifeline.await_left_overs(Path(RESULTS, SCRATCH))
        lifeline.clear_left_overs(
            Path(RESULTS, SCRATCH),
            [workflow.snakemake_tmp_dir, workflow.sourcecache.runtime_cache_path],
        )


def take_gpus():
    """Have the jobs of this run share the GPUs of this machine, at most as many as the limit on `gpu` says."""
    try:
        found = cores_of_gpus()
    except SourceUnavailable as error:
        found, why = {}, f": {error}"
    else:
        why = ""
    if not found:
        raise UserError(
            f"this machine shows no GPU{why}; `--profile profiles/local` runs the workflow without one"
        )
    limit = workflow.global_resources["gpu"].value
    gpus = dict(list(found.items())[:limit])
    gpu_lease.announce(gpus, least_memory_b(gpus))
    # By it Snakemake starts no more jobs than there are GPUs, so that none waits on cores that others could use.
    workflow.global_resources["gpu"] = len(gpus)


def refuse_damaged(inputs, *outputs):
    """End with a sentence if a manifest among the inputs cannot be read or was moved from another artifact.

    Or if something lies in the place of a file that the node writes, its log among them.
    """
    if not workflow.is_main_process:
        return
    paths = [[item] if isinstance(item, str) else item for item in inputs.values()]
    with ending_in_a_sentence():
        require_readable(path for items in paths for path in items)
        for path in outputs:
            require_place(Path(path))


def parents(stage):
    """An input function: the manifests and files that a node of `stage` is built from, by name.

    Of local files the content counts and no time. Snakemake compares the content of small files alone, so it is told:
    a node whose files have changed is forced. As a parameter their digests would make it rerun what is there already.
    """

    def inputs(wildcards):
        enter_run()
        found = GRAPH.parents(stage, wildcards.id)
        if "files" in found:
            found["files"] = ancient(found["files"])
            # Jobs of a run are forced themselves.
            if workflow.is_main_process and has_changed_files(
                GRAPH, stage, wildcards.id
            ):
                workflow.dag.forcefiles.add(GRAPH.manifest(stage, wildcards.id))
        refuse_damaged(
            found,
            GRAPH.manifest(stage, wildcards.id),
            f"logs/{stage}/{wildcards.id}.log",
        )
        return found

    return inputs


def gpu_memory_b():
    """Memory of one GPU of the machines that jobs run on: as the profile says, or as this machine's GPUs have."""
    given = config.get("gpu_memory_gb")
    try:
        return gpu_lease.announced_memory_b() if given is None else float(given) * 1e9
    except ValueError:
        raise WorkflowError(
            f"gpu_memory_gb is {given!r}: give the GB of one GPU, such as 80"
        ) from None


def requests(stage):
    """The resources of a rule: what its jobs ask of a cluster. Without one they are printed and have no effect."""

    def request_of(wildcards, input, threads):
        # Read again at each submission: what a parent weighs is known once it is built.
        try:
            return request(
                GRAPH.study,
                stage,
                wildcards.id,
                dict(input.items()),
                cores=threads,
                gpu_memory_b=gpu_memory_b(),
            )
        except UserError as error:
            raise WorkflowError(str(error)) from None

    def runtime(wildcards, input, threads, attempt):
        return attempt * request_of(wildcards, input, threads).minutes

    def mem_mb(wildcards, input, threads, attempt):
        return attempt * request_of(wildcards, input, threads).memory_mb

    def nodes(wildcards, input, threads):
        return request_of(wildcards, input, threads).nodes

    def gpu(wildcards, input, threads):
        found = request_of(wildcards, input, threads)
        return found.nodes * found.gpus_per_node

    def cpus_per_task(wildcards, input, threads):
        return threads * request_of(wildcards, input, threads).gpus_per_node

    def slurm_extra(wildcards, input, threads):
        return " ".join(request_of(wildcards, input, threads).options) or None

    def over_nodes(value_of):
        # The plugin starts a job of one node in a step of its own, out of which no other node can be reached.
        def value(wildcards, input, threads):
            found = request_of(wildcards, input, threads)
            return value_of(found) if found.nodes > 1 else None

        return value

    asked = {"runtime": runtime, "mem_mb": mem_mb}
    if stage not in GPU_STAGES:
        return asked
    return asked | {
        "nodes": nodes,
        "gpu": gpu,
        "cpus_per_task": cpus_per_task,
        # One task a node, which starts the ranks; the plugin would make it one a GPU.
        "tasks_per_gpu": 0,
        "tasks": over_nodes(lambda found: found.nodes),
        "mpi": over_nodes(lambda found: "srun"),
        "slurm_extra": slurm_extra,
    }


def spec(stage):
    """A params function: what decides the result of a node of `stage`, as one plain sorted dict."""
    return lambda wildcards: GRAPH.spec(stage, wildcards.id)


def table_parents(wildcards):
    """An input function: the manifests that a table reads, by stage, or the tables that it is made of."""
    found = GRAPH.table_parents(wildcards.table)
    refuse_damaged(
        found, f"{RESULTS}/{wildcards.table}.csv", f"logs/{wildcards.table}.log"
    )
    return found


def table_spec(wildcards):
    """A params function: rows, columns and labels of a table."""
    return GRAPH.table_spec(wildcards.table)


def report_tables(wildcards):
    """An input function: the tables of the report, as its rule says. Stale ones that nobody asked for stay out of it.

    A job of a run reads the state anew: what was asked for is there by then.
    """
    enter_run()
    paths = {table: f"{RESULTS}/{table}.csv" for table in GRAPH.tables()}
    asked = {str(Path(target)) for target in workflow.dag_settings.targets}
    refuse_damaged({}, f"{RESULTS}/report.html", "logs/report.log")
    up_to_date = tables_up_to_date(GRAPH)
    chosen = {table for table in paths if paths[table] in asked or table in up_to_date}
    with_rows = [table for table in chosen if table in DESCRIPTIONS]
    chosen.update(map(pairs_of, with_rows))
    # Findings and differences alone make no report.
    return [path for table, path in paths.items() if table in chosen or not with_rows]


def device_cores(stage):
    """A threads function: every core of the run for a measured node, so that it shares the machine with no other.

    Where jobs have GPUs of their own: the share of the cores that goes with a node's GPUs.
    """

    def cores(wildcards):
        gpus = gpu_lease.announced()
        if gpus is not None:
            asked = STAGES[stage].devices(GRAPH.spec(stage, wildcards.id)["config"])
            return max(1, (workflow.cores or 1) * asked // len(gpus))
        return workflow.cores or 1 if GRAPH.is_measured(stage, wildcards.id) else 1

    return cores


def text_cores(stage):
    """A threads function: every core of the run for text of files or of the hub. What Python carries takes seconds."""

    def cores(wildcards):
        study, id = GRAPH.study, wildcards.id
        if stage != "corpus":
            tokens = study.orders[id].tokens if stage == "order" else id
            id = getattr(study.tokens[tokens], "corpus", None)
        is_large = id is not None and study.corpora[id].source.kind != "embedded"
        return workflow.cores or 1 if is_large else 1

    return cores


def measured_alone(stage):
    """A resource function: 1 for a measured node; a profile admits one of them at a time."""
    return lambda wildcards: int(GRAPH.is_measured(stage, wildcards.id))


def tell_older_code():
    """One line at the start of a run: how many artifacts stand although the code of their stage has changed."""
    if not workflow.remote_exec:
        logger.info(older_code_line(GRAPH))


def require_records():
    """Refuse to use what is of another configuration and is not planned again, because it was copied here."""
    if workflow.remote_exec:
        return
    dag = workflow.dag
    up_to_date = [
        path for job in dag.jobs if not dag.needrun(job) for path in job.output
    ]
    try:
        require_todays_specs(GRAPH, up_to_date)
    except UserError as error:
        raise WorkflowError(str(error)) from None
