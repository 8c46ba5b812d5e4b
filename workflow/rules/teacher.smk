# Teachers. One rule an experiment, because the snapshots that a training exports are declared.
for path, experiment in FILES.values():

    rule:
        name:
            f"teacher_{experiment.experiment}"
        input:
            **prepared(experiment.dataset.name, "train"),
        output:
            *snapshots(experiment, "teacher"),
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
            attempt=attempt,
        params:
            digest=experiment.train_hash("teacher"),
            config=path,
            runs="runs",
            data=subpath(input.manifest, parent=True),
            folder=subpath(output.weights, parent=True),
        shell:
            "ctm teacher --config {params.config:q} --seed {wildcards.seed} --data {params.data:q}"
            " --runs {params.runs:q} --output {params.folder:q} --attempt {resources.attempt}"
            " 2>&1 | tee -i {log:q}"
