"""The report: tables, the answers they give and where they come from, as one page.

in:  the tables that are asked for together with it, and those that are there and up to date, with their pairs; all of
     the study where there is none
out: results/report.html
"""


rule report:
    input:
        tables=report_tables,
    output:
        html=report(f"{RESULTS}/report.html", category="Report"),
    log:
        "logs/report.log",
    conda:
        "../environment.yml"
    threads: 1
    params:
        budgets=GRAPH.budgets(),
    message:
        "Writing {output.html}"
    script:
        REPORT_SCRIPT
