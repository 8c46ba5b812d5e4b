# Students. The state of a training (checkpoints, scalars, previews) is in runs/, never an output:
# Snakemake removes outputs before a job starts, and a killed training continues from its state.
for name, experiment in EXPERIMENTS.items():
    for model in experiment.students:

        rule:
            name:
                f"train_{experiment.experiment}_{model}"
            input:
                **prepared(experiment.dataset.name, "train"),
                **layout.start(experiment, model),
            output:
                *further_weights(experiment, model),
                weights=weights(experiment, model),
                curve=f"{training_folder(experiment, model)}/training.jsonl",
                record=f"{training_folder(experiment, model)}/training.json",
            log:
                f"logs/train/{experiment.experiment}/{model}/seed-{{seed}}.log",
            benchmark:
                f"results/benchmarks/train/{experiment.experiment}/{model}/seed-{{seed}}.tsv"
            conda:
                "../envs/ctm.yaml"
            threads: experiment.threads
            resources:
                **limits(experiment.resources.training),
                attempt=attempt,
            params:
                needs=list(experiment.student(model).assets),
                digest=experiment.train_hash(model),
                config=FILES[name],
                model=model,
                runs="runs",
                processes=experiment.resources.training.processes,
                data=subpath(input.manifest, parent=True),
                start=start_options,
                folder=subpath(output.weights, parent=True),
            shell:
                "ctm train --config {params.config:q} --model {params.model}"
                " --seed {wildcards.seed} --data {params.data:q} {params.start:q}"
                " --runs {params.runs:q} --output {params.folder:q} --attempt {resources.attempt}"
                " --processes {params.processes} 2>&1 | tee -i {log:q}"
