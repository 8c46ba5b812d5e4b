# Teachers. One rule an experiment, because the snapshots that a training exports are declared.
for name, experiment in EXPERIMENTS.items():
    if not experiment.trains_teacher:
        continue

    rule:
        name:
            f"teacher_{experiment.experiment}"
        input:
            **prepared(experiment.dataset.name, "train"),
        output:
            *further_weights(experiment, "teacher"),
            weights=weights(experiment, "teacher"),
            curve=f"{training_folder(experiment, 'teacher')}/training.jsonl",
            record=f"{training_folder(experiment, 'teacher')}/training.json",
        log:
            f"logs/teacher/{experiment.experiment}/seed-{{seed}}.log",
        benchmark:
            f"results/benchmarks/teacher/{experiment.experiment}/seed-{{seed}}.tsv"
        conda:
            "../envs/ctm.yaml"
        threads: experiment.threads
        resources:
            **limits(experiment.resources.training),
            attempt=attempt,
        params:
            digest=experiment.train_hash("teacher"),
            config=FILES[name],
            runs="runs",
            processes=experiment.resources.training.processes,
            data=subpath(input.manifest, parent=True),
            folder=subpath(output.weights, parent=True),
        shell:
            "ctm teacher --config {params.config:q} --seed {wildcards.seed} --data {params.data:q}"
            " --runs {params.runs:q} --output {params.folder:q} --attempt {resources.attempt}"
            " --processes {params.processes} 2>&1 | tee -i {log:q}"


# Networks of others: a teacher, or a model that its authors released. Not an input, so that a plan
# needs no files, and the file may go once it is converted; what is missing is told before the
# first job (common.smk).
rule convert:
    output:
        weights="results/{origin}/{asset}/weights.safetensors",
        provenance="results/{origin}/{asset}/provenance.json",
    log:
        "logs/convert/{origin}/{asset}.log",
    benchmark:
        "results/benchmarks/convert/{origin}/{asset}.tsv"
    conda:
        "../envs/ctm.yaml"
    resources:
        # As a parameter, another folder for assets would convert and train everything anew.
        file=asset_path,
    params:
        needs=asset_needs,
        kind=asset_kind,
        folder=subpath(output.weights, parent=True),
    shell:
        "ctm convert {resources.file:q} --kind {params.kind} --output {params.folder:q}"
        " 2>&1 | tee -i {log:q}"
