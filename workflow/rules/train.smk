# Students. The state of a training (checkpoints, scalars, previews) is in runs/, never an output:
# Snakemake removes outputs before a job starts, and a killed training continues from its state.
for name, experiment in EXPERIMENTS.items():
    for model in experiment.students:
        job = dag.training(experiment, model)

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
                needs=list(job.assets),
                digest=experiment.train_hash(model),
                model=model,
                runs="runs",
                processes=experiment.resources.training.processes,
                data=subpath(input.manifest, parent=True),
                start=options(
                    teacher="--teacher",
                    weak_teacher="--weak-teacher",
                    init="--init",
                    init_average="--init-average",
                ),
                folder=subpath(output.weights, parent=True),
            shell:
                "CTM_LOG={log:q} exec ctm train --config {resources.config_file:q} --model {params.model}"
                " --seed {wildcards.seed} --data {params.data:q} {params.start:q}"
                " --runs {params.runs:q} --output {params.folder:q} --attempt {resources.attempt}"
                " --processes {params.processes}"
