"""Run the stage of a rule in a process of its own: rules are named after their stages."""

from effllm.runtime.launch import run_stage
from effllm.stages import STAGES

run_stage(
    STAGES[snakemake.rule],
    spec=snakemake.params.spec,
    inputs=dict(snakemake.input.items()),
    manifest=snakemake.output.manifest,
    log=snakemake.log[0],
    threads=snakemake.threads,
    gpus=snakemake.resources.get("gpu", 0) // max(snakemake.resources.get("nodes", 1), 1),
)
