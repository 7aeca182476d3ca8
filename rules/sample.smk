"""Images sampled from models of diffusion, and how close they come to real ones.

in:  a trained model; images; the study
out: results/sample/<id>/manifest.json, results/features/<id>/manifest.json, results/fidelity/<id>/manifest.json
"""


rule sample:
    input:
        unpack(parents("sample")),
    output:
        manifest=f"{RESULTS}/sample/{{id}}/manifest.json",
    log:
        "logs/sample/{id}.log",
    wildcard_constraints:
        id=only("sample"),
    conda:
        "../environment.yml"
    threads: device_cores("sample")
    resources:
        **requests("sample"),
        profiler=measured_alone("sample"),
    params:
        spec=spec("sample"),
    message:
        "Sampling images of {wildcards.id}"
    script:
        STAGE_SCRIPT


rule fidelity:
    input:
        unpack(parents("fidelity")),
    output:
        manifest=f"{RESULTS}/fidelity/{{id}}/manifest.json",
    log:
        "logs/fidelity/{id}.log",
    wildcard_constraints:
        id=only("fidelity"),
    conda:
        "../environment.yml"
    threads: device_cores("fidelity")
    resources:
        **requests("fidelity"),
    params:
        spec=spec("fidelity"),
    message:
        "Comparing with real images the samples of {wildcards.id}"
    script:
        STAGE_SCRIPT


rule features:
    input:
        unpack(parents("features")),
    output:
        manifest=f"{RESULTS}/features/{{id}}/manifest.json",
    log:
        "logs/features/{id}.log",
    wildcard_constraints:
        id=only("features"),
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=spec("features"),
    message:
        "Making the network of features {wildcards.id}"
    script:
        STAGE_SCRIPT
