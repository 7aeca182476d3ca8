"""Models of images and videos, what they read of captions, and their fine-tuning.

in:  captions, a pipeline
out: results/{generator,encode,tune}/<id>/manifest.json
"""


rule generator:
    input:
        unpack(parents("generator")),
    output:
        manifest=f"{RESULTS}/generator/{{id}}/manifest.json",
    log:
        "logs/generator/{id}.log",
    wildcard_constraints:
        id=only("generator"),
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=spec("generator"),
    message:
        "Preparing the pipeline {wildcards.id}"
    script:
        STAGE_SCRIPT


rule encode:
    input:
        unpack(parents("encode")),
    output:
        manifest=f"{RESULTS}/encode/{{id}}/manifest.json",
    log:
        "logs/encode/{id}.log",
    wildcard_constraints:
        id=only("encode"),
    conda:
        "../environment.yml"
    threads: device_cores("encode")
    resources:
        **requests("encode"),
    params:
        spec=spec("encode"),
    message:
        "Encoding images and captions {wildcards.id}"
    script:
        STAGE_SCRIPT


rule tune:
    input:
        unpack(parents("tune")),
    output:
        manifest=f"{RESULTS}/tune/{{id}}/manifest.json",
    log:
        "logs/tune/{id}.log",
    wildcard_constraints:
        id=only("tune"),
    conda:
        "../environment.yml"
    threads: device_cores("tune")
    resources:
        **requests("tune"),
        profiler=measured_alone("tune"),
    params:
        spec=spec("tune"),
    message:
        "Fine-tuning {wildcards.id} on captions"
    script:
        STAGE_SCRIPT
