"""Assemble one table from the artifacts of its rows: the rule is named after the table."""

from effllm.tables.assemble import write_table

write_table(
    snakemake.rule,
    spec=snakemake.params.spec,
    inputs=dict(snakemake.input.items()),
    output=snakemake.output.csv,
    log=snakemake.log[0],
)
