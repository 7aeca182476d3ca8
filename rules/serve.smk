"""Latency, throughput, energy and memory of a model that is served, at parts of the rate that it can bear.

in:  a model in one precision
out: results/serve/<id>/manifest.json
"""


rule serve:
    input:
        unpack(parents("serve")),
    output:
        manifest=f"{RESULTS}/serve/{{id}}/manifest.json",
    log:
        "logs/serve/{id}.log",
    wildcard_constraints:
        id=only("serve"),
    conda:
        "../environment.yml"
    threads: device_cores("serve")
    resources:
        **requests("serve"),
        profiler=measured_alone("serve"),
    params:
        spec=spec("serve"),
    message:
        "Serving {wildcards.id}"
    script:
        STAGE_SCRIPT
