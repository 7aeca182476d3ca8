"""Training of diffusion transformers from random weights.

in:  images
out: results/diffuse/<id>/manifest.json
"""


rule diffuse:
    input:
        unpack(parents("diffuse")),
    output:
        manifest=f"{RESULTS}/diffuse/{{id}}/manifest.json",
    log:
        "logs/diffuse/{id}.log",
    wildcard_constraints:
        id=only("diffuse"),
    conda:
        "../environment.yml"
    threads: device_cores("diffuse")
    resources:
        **requests("diffuse"),
        profiler=measured_alone("diffuse"),
    params:
        spec=spec("diffuse"),
    message:
        "Training the diffusion transformer {wildcards.id}"
    script:
        STAGE_SCRIPT
