"""Benchmarks, scores, and what of a benchmark stands in training text.

in:  a corpus or nothing (the hub); a model in one precision and a benchmark; a benchmark and a corpus
out: results/{benchmark,evaluate,overlap}/<id>/manifest.json
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
    threads: device_cores("evaluate")
    resources:
        **requests("evaluate"),
    params:
        spec=spec("evaluate"),
    message:
        "Scoring {wildcards.id}"
    script:
        STAGE_SCRIPT


rule overlap:
    input:
        unpack(parents("overlap")),
    output:
        manifest=f"{RESULTS}/overlap/{{id}}/manifest.json",
    log:
        "logs/overlap/{id}.log",
    wildcard_constraints:
        id=only("overlap"),
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **requests("overlap"),
    params:
        spec=spec("overlap"),
    message:
        "Looking for {wildcards.id} in training text"
    script:
        STAGE_SCRIPT
