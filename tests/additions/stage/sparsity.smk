"""How many weights are zero. Becomes rules/sparsity.smk.

in:  a model in one precision
out: results/sparsity/<id>/manifest.json
"""


rule sparsity:
    input:
        unpack(parents("sparsity")),
    output:
        manifest=f"{RESULTS}/sparsity/{{id}}/manifest.json",
    log:
        "logs/sparsity/{id}.log",
    wildcard_constraints:
        id=only("sparsity"),
    conda:
        "../environment.yml"
    threads: 1
    resources:
        **requests("sparsity"),
    params:
        spec=spec("sparsity"),
    message:
        "Counting the zeros of {wildcards.id}"
    script:
        STAGE_SCRIPT
