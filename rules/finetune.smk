"""Fine-tuned models.

in:  a trained or fetched model, and instruction data
out: results/finetune/<model>.<suite>.<method>/manifest.json, results/merge/<the same>/manifest.json
"""


rule finetune:
    input:
        unpack(parents("finetune")),
    output:
        manifest=f"{RESULTS}/finetune/{{id}}/manifest.json",
    log:
        "logs/finetune/{id}.log",
    wildcard_constraints:
        id=only("finetune"),
    conda:
        "../environment.yml"
    threads: device_cores("finetune")
    resources:
        **requests("finetune"),
        profiler=measured_alone("finetune"),
    params:
        spec=spec("finetune"),
    message:
        "Fine-tuning {wildcards.id}"
    script:
        STAGE_SCRIPT


rule merge:
    input:
        unpack(parents("merge")),
    output:
        manifest=f"{RESULTS}/merge/{{id}}/manifest.json",
    log:
        "logs/merge/{id}.log",
    wildcard_constraints:
        id=only("merge"),
    conda:
        "../environment.yml"
    threads: device_cores("merge")
    resources:
        **requests("merge"),
    params:
        spec=spec("merge"),
    message:
        "Merging {wildcards.id}"
    script:
        STAGE_SCRIPT
