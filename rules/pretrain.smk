"""Training from random weights.

in:  a token stream and its tokenizer
out: results/pretrain/<id>/manifest.json
"""


rule pretrain:
    input:
        unpack(parents("pretrain")),
    output:
        manifest=f"{RESULTS}/pretrain/{{id}}/manifest.json",
    log:
        "logs/pretrain/{id}.log",
    wildcard_constraints:
        id=only("pretrain"),
    conda:
        "../environment.yml"
    threads: device_cores("pretrain")
    resources:
        **requests("pretrain"),
        profiler=measured_alone("pretrain"),
    params:
        spec=spec("pretrain"),
    message:
        "Pretraining {wildcards.id}"
    script:
        STAGE_SCRIPT
