"""Tables: pure functions of artifacts.

in:  manifests of the artifacts in a table's rows
out: results/table<N>.csv, results/validity.csv
"""


rule table9:
    input:
        **table_parents("table9"),
    output:
        csv=f"{RESULTS}/table9.csv",
    log:
        "logs/table9.log",
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=table_spec("table9"),
    message:
        "Assembling Table 9, quantization"
    script:
        TABLE_SCRIPT


rule table16:
    input:
        **table_parents("table16"),
    output:
        csv=f"{RESULTS}/table16.csv",
    log:
        "logs/table16.log",
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=table_spec("table16"),
    message:
        "Assembling Table 16, quantization by benchmark"
    script:
        TABLE_SCRIPT


rule validate:
    input:
        **table_parents("validity"),
    output:
        csv=f"{RESULTS}/validity.csv",
    log:
        "logs/validity.log",
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=table_spec("validity"),
    message:
        "Checking the plausibility of every artifact"
    script:
        TABLE_SCRIPT
