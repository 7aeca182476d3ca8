"""Assemble one table from the artifacts of its rows; the spec names the table."""

from effllm.assembly.assemble import write_table

write_table(
    snakemake.params.spec["table"],
    spec=snakemake.params.spec,
    inputs=dict(snakemake.input.items()),
    output=snakemake.output.csv,
    log=snakemake.log[0],
)
