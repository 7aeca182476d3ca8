"""Benchmarks and scores.

in:  a corpus or nothing (the hub); a model in one precision and a benchmark
out: results/{benchmark,evaluate}/<id>/manifest.json
"""


rule benchmark:
    input:
        unpack(parents("benchmark")),
    output:
        manifest=f"{RESULTS}/benchmark/{{id}}/manifest.json",
    log:
        "logs/benchmark/{id}.log",
    wildcard_constraints:
        id=only("benchmark"),
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=spec("benchmark"),
    message:
        "Making the benchmark {wildcards.id}"
    script:
        STAGE_SCRIPT


rule evaluate:
    input:
        unpack(parents("evaluate")),
    output:
        manifest=f"{RESULTS}/evaluate/{{id}}/manifest.json",
    log:
        "logs/evaluate/{id}.log",
    wildcard_constraints:
        id=only("evaluate"),
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **requests("evaluate"),
    params:
        spec=spec("evaluate"),
    message:
        "Scoring {wildcards.id}"
    script:
        STAGE_SCRIPT
