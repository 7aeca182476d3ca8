"""Latency, throughput, memory, utilisation, power and energy of the fixed inference workload.

in:  a model in one precision
out: results/profile/<id>/manifest.json
"""


rule profile:
    input:
        unpack(parents("profile")),
    output:
        manifest=f"{RESULTS}/profile/{{id}}/manifest.json",
    log:
        "logs/profile/{id}.log",
    wildcard_constraints:
        id=only("profile"),
    conda:
        "../environment.yml"
    threads: device_cores("profile")
    resources:
        **requests("profile"),
        profiler=measured_alone("profile"),
    params:
        spec=spec("profile"),
    message:
        "Profiling {wildcards.id}"
    script:
        STAGE_SCRIPT
