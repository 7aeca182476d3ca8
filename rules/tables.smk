"""Tables: pure functions of artifacts, or of other tables.

in:  manifests of the artifacts in a table's rows, or the tables that a table is made of
out: results/table<N>.csv, table<N>-pairs.csv, validity.csv, pairs.csv, ranks.csv, comparison.csv, claims.csv,
     crossover.csv
"""


rule table:
    input:
        unpack(table_parents),
    output:
        csv=report(f"{RESULTS}/{{table}}.csv", category="Tables"),
    log:
        "logs/{table}.log",
    wildcard_constraints:
        table=any_of(GRAPH.tables()),
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=table_spec,
    message:
        "Assembling {output.csv}"
    script:
        TABLE_SCRIPT
