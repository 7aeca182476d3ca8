"""Write the report of tables under the study's budgets."""

from effllm.report.command import write_report_of_tables

write_report_of_tables(
    list(snakemake.input.tables),
    budgets=snakemake.params.budgets,
    output=snakemake.output.html,
    log=snakemake.log[0],
)
