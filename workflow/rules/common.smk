# Configuration, the names of files, and what rules ask about them; nothing that a job runs.
import fcntl
import os
import sys
from pathlib import Path

from snakemake.utils import validate

from ctm_core.config import Experiment, Workflow, read_yaml, validated
from ctm_core.errors import UserError
from ctm_core.files import sha256_json
from ctm_core.protocols import load_protocol

# Jobs find the `ctm` that stands beside the Python running Snakemake, and know whose they are.
os.environ.update(
    PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    CTM_WORKFLOW=str(Path.cwd()),
)

# Held as long as this process lives, so that a lock left by a killed Snakemake can be told from
# one in use (workflow/scripts/clear_dead_lock.py).
Path(".snakemake").mkdir(exist_ok=True)
alive = open(".snakemake/alive", "a")
fcntl.flock(alive, fcntl.LOCK_SH)


def refuse(sentence):
    """End as `ctm` does on a user's mistake: one sentence and exit code 2."""
    print(f"snakemake: {sentence}", file=sys.stderr)
    sys.exit(2)


def locate(path):
    """A config file, looked up in the working directory first and beside the Snakefile then."""
    if Path(path).exists():
        return str(path)
    beside = Path(workflow.basedir) / path
    return os.path.relpath(beside) if beside.exists() else str(path)


def load_experiments():
    """Every experiment of the config by its name, with the path of its file."""
    # No `configfile:` statement: it would merge with the file given on the command line.
    if not config:
        config.update(read_yaml(locate("config/config.yaml")))
    given = workflow.configfiles[0] if workflow.configfiles else "config/config.yaml"
    listed = validated(Workflow, dict(config), given)
    validate(config, "../schemas/config.schema.json", set_default=False)
    found = {}
    for entry in listed.experiments:
        named = not entry.endswith((".yaml", ".yml"))
        path = locate(f"config/experiments/{entry}.yaml" if named else entry)
        section = read_yaml(path)
        experiment = validated(Experiment, section, path)
        validate(section, "../schemas/experiment.schema.json", set_default=False)
        if experiment.experiment in found:
            raise UserError(f"{given}: the experiment {experiment.experiment} stands there twice")
        found[experiment.experiment] = (path, experiment)
    return found


def protocol_file(name):
    return locate(f"config/protocols/{name}.yaml")


def load_protocols():
    """Every protocol that an experiment names."""
    names = {name for _, experiment in FILES.values() for name in experiment.evaluation.protocols}
    return {name: load_protocol(protocol_file(name)) for name in sorted(names)}


try:
    FILES = load_experiments()
    PROTOCOLS = load_protocols()
except UserError as error:
    refuse(error)
EXPERIMENTS = {name: experiment for name, (_, experiment) in FILES.items()}


def sources():
    """The source of each data set; two experiments may not differ in it."""
    found = {}
    for name, experiment in EXPERIMENTS.items():
        dataset = experiment.dataset
        if found.setdefault(dataset.name, dataset.source) != dataset.source:
            refuse(
                f"{FILES[name][0]}: dataset.source of {dataset.name} is {dataset.source}, but "
                f"another experiment has {found[dataset.name]}; a data set has one source"
            )
    return found


SOURCES = sources()


wildcard_constraints:
    experiment="|".join(EXPERIMENTS),
    protocol="|".join(PROTOCOLS),
    dataset="[a-z0-9][a-z0-9_-]*",
    model="[a-z0-9][a-z0-9_-]*",
    split="train|test",
    seed=r"\d+",
    step=r"\d+",


def experiment_file(wildcards):
    return FILES[wildcards.experiment][0]


def prepared(dataset, split):
    """The files of a prepared data set."""
    folder = f"results/data/{dataset}/{split}"
    return {
        "images": f"{folder}/images.npy",
        "labels": f"{folder}/labels.npy",
        "manifest": f"{folder}/manifest.json",
    }


def training_folder(experiment, model, seed="{seed}"):
    return f"results/{experiment.experiment}/{model}/seed-{seed}"


def weights(experiment, model, step=None, seed="{seed}"):
    """The file that holds a model's weights after `step`, by default the last."""
    final = "teacher" if model == "teacher" else "student"
    last = step in (None, experiment.training(model).steps)
    name = final if last else f"snapshot-{step:08d}"
    return f"{training_folder(experiment, model, seed)}/{name}.safetensors"


def snapshots(experiment, model):
    """The weights a training exports on its way to the last step."""
    training = experiment.training(model)
    return [weights(experiment, model, n) for n in training.snapshots if n != training.steps]


def trainings():
    """Folders of every training of every experiment, with the steps that are evaluated."""
    for experiment in EXPERIMENTS.values():
        for model, seed in experiment.runs():
            training = experiment.training(model)
            steps = sorted({*training.snapshots, training.steps})
            yield training_folder(experiment, model, seed), steps


def evaluated(name):
    """A file of every evaluation."""
    return [f"{folder}/step-{step}/{name}" for folder, steps in trainings() for step in steps]


def trained(name):
    """A file of every training."""
    return [f"{folder}/{name}" for folder, _ in trainings()]


def attempt(wildcards, attempt):
    """Which attempt this is: from the second on, a failure that would repeat ends at once."""
    return attempt


def source_option(wildcards):
    """`--source` for the data sets whose experiment names one."""
    source = SOURCES.get(wildcards.dataset)
    return ["--source", source] if source else []


def reference_data(wildcards):
    reference = PROTOCOLS[wildcards.protocol].reference
    return prepared(reference.dataset, reference.split)


def protocol_path(wildcards):
    return protocol_file(wildcards.protocol)


def protocol_digest(wildcards):
    return sha256_json(PROTOCOLS[wildcards.protocol].model_dump(mode="json"))


def evaluated_weights(wildcards):
    experiment = EXPERIMENTS[wildcards.experiment]
    return weights(experiment, wildcards.model, int(wildcards.step), wildcards.seed)


def references(wildcards):
    """The reference statistics of every protocol that scores a cell of the model."""
    names = EXPERIMENTS[wildcards.experiment].protocols(wildcards.model)
    return [f"results/features/{name}.safetensors" for name in names]


def evaluation_digest(wildcards):
    """Changes with whatever decides the model's rows beside its weights."""
    experiment = EXPERIMENTS[wildcards.experiment]
    protocols = [
        PROTOCOLS[p].model_dump(mode="json") for p in experiment.protocols(wildcards.model)
    ]
    return sha256_json([experiment.evaluation_hash(wildcards.model), protocols])


def evaluation_threads(wildcards):
    return EXPERIMENTS[wildcards.experiment].threads


def training_options(wildcards, input):
    return [word for path in input.curves for word in ("--training", path)]
