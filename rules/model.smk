"""Models that the study does not train.

in:  nothing (the hub), or a local model's files
out: results/model/<id>/manifest.json
"""


rule model:
    input:
        unpack(parents("model")),
    output:
        manifest=f"{RESULTS}/model/{{id}}/manifest.json",
    log:
        "logs/model/{id}.log",
    wildcard_constraints:
        id=only("model"),
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=spec("model"),
    message:
        "Fetching the model {wildcards.id}"
    script:
        STAGE_SCRIPT
