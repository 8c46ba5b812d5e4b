# Teachers. One rule per experiment, because the snapshots that a training exports are declared.
for name, experiment in EXPERIMENTS.items():
    if not experiment.trains_teacher:
        continue
    job = dag.training(experiment, "teacher")

    rule:
        name:
            job.rule
        input:
            **job.reads,
        output:
            **job.makes,
        log:
            f"logs/{job.benchmark}.log",
        benchmark:
            f"results/benchmarks/{job.benchmark}.tsv"
        priority: TRAININGS_NEXT
        conda:
            "../envs/ctm.yaml"
        threads: experiment.threads
        resources:
            **limits(experiment.resources.training),
            attempt=attempt,
            config_file=PROJECT.files[name],
        params:
            digest=experiment.train_hash("teacher"),
            runs="runs",
            processes=experiment.resources.training.processes,
            data=subpath(input.manifest, parent=True),
            folder=subpath(output.weights, parent=True),
        shell:
            "CTM_LOG={log:q} exec ctm teacher --config {resources.config_file:q} --seed {wildcards.seed}"
            " --data {params.data:q} --runs {params.runs:q} --output {params.folder:q}"
            " --attempt {resources.attempt} --processes {params.processes}"


# Networks of others: a teacher, or a model that its authors released. The file is not an input, so
# a dry run does not need it, and it may be deleted after the conversion. Missing files are reported
# before the first job (scripts/preflight.py).
rule convert:
    output:
        **layout.converted("{origin}", "{asset}"),
    log:
        "logs/convert/{origin}/{asset}.log",
    benchmark:
        "results/benchmarks/convert/{origin}/{asset}.tsv"
    conda:
        "../envs/ctm.yaml"
    resources:
        # No parameter: where a file is must not decide what is rerun.
        file=asset_path,
    params:
        needs=needs(dag.convert),
        kind=asset_kind,
        folder=subpath(output.weights, parent=True),
    shell:
        "CTM_LOG={log:q} exec ctm convert {resources.file:q} --kind {params.kind}"
        " --output {params.folder:q}"
