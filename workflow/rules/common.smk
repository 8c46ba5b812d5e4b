# Configuration, the names of files, and what rules ask about them; nothing that a job runs.
import atexit
import fcntl
import os
import sys
from pathlib import Path

from snakemake.utils import validate

from ctm_core import assets
from ctm_core.config import Experiment, Workflow, read_yaml, validated
from ctm_core.errors import UserError
from ctm_core.files import sha256_json
from ctm_core.protocols import ReferenceFile, load_protocol

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
    ASSETS = assets.load()
    for path, experiment in FILES.values():
        assets.check_names(experiment.named_assets(), ASSETS, path)
    for name, protocol in PROTOCOLS.items():
        assets.check_names(protocol.named_assets(), ASSETS, protocol_file(name))
except UserError as error:
    refuse(error)
EXPERIMENTS = {name: experiment for name, (_, experiment) in FILES.items()}


def datasets():
    """Each data set; two experiments may not differ in its source."""
    found = {}
    for name, experiment in EXPERIMENTS.items():
        dataset = experiment.dataset
        known = found.setdefault(dataset.name, dataset)
        if known.source != dataset.source:
            refuse(
                f"{FILES[name][0]}: dataset.source of {dataset.name} is {dataset.source}, but "
                f"another experiment has {known.source}; a data set has one source"
            )
    return found


DATASETS = datasets()


def needed_files():
    """External files that the jobs of this run read, by their names in config/assets.yaml."""
    jobs = workflow.dag.needrun_jobs(exclude_finished=False) if workflow.dag else []
    return sorted({name for job in jobs for name in job.params.get("needs", [])})


@atexit.register
def note_missing_files():
    """A plan needs no files; it says which a run would ask for."""
    if workflow.dryrun and workflow.is_main_process:
        absent = [name for name in needed_files() if not ASSETS[name].path().exists()]
        if absent:
            print(
                f"Before its first job a run will ask for files that are not here: "
                f"{', '.join(absent)} (`ctm assets` says where they come from).",
                file=sys.stderr,
            )


onstart:
    problems = [p for p in (assets.problem(ASSETS[name]) for name in needed_files()) if p]
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        refuse(
            f"{len(problems)} external files are needed first, see above; nothing was started"
        )
    assets.pin_present(
        [ASSETS[name] for name in needed_files()],
        say=lambda line: print(line, file=sys.stderr),
    )


wildcard_constraints:
    experiment="|".join(EXPERIMENTS),
    protocol="|".join(PROTOCOLS),
    asset="|".join(ASSETS),
    origin="teachers|released",
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
    asset = experiment.imported(model)
    if asset is not None:
        origin = "teachers" if model == "teacher" else "released"
        return f"results/{origin}/{asset}/weights.safetensors"
    final = "teacher" if model == "teacher" else "student"
    last = step in (None, experiment.last_step(model))
    name = final if last else f"snapshot-{step:08d}"
    return f"{training_folder(experiment, model, seed)}/{name}.safetensors"


def live_weights(experiment, model, step):
    """The file from which another training goes on: weights as they were, not their average."""
    return f"{training_folder(experiment, model)}/live-{step:08d}.safetensors"


def further_weights(experiment, model):
    """What a training exports beside its last weights: snapshots, and live weights for forks."""
    last = experiment.last_step(model)
    snapshots = [n for n in experiment.exported_steps(model) if n != last]
    return [
        *(weights(experiment, model, n) for n in snapshots),
        *(live_weights(experiment, model, n) for n in experiment.fork_steps(model)),
    ]


def start(experiment, model):
    """The weights that a training starts from, by the option of `ctm train` that takes each."""
    student = experiment.student(model)
    found = {}
    if student.uses_teacher:
        found["teacher"] = weights(experiment, "teacher", seed=experiment.teacher.seed)
    if (fork := student.init_from) is not None:
        found["init"] = live_weights(experiment, fork.model, fork.step)
        found["init_average"] = weights(experiment, fork.model, fork.step)
    return found


def start_options(wildcards, input):
    return [
        word
        for name in ("teacher", "init", "init_average")
        if name in input.keys()
        for word in (f"--{name.replace('_', '-')}", input[name])
    ]


def evaluated(name):
    """A file of every evaluation: of each model and seed, at each step that a protocol scores."""
    return [
        f"{training_folder(experiment, model, seed)}/step-{step}/{name}"
        for experiment in EXPERIMENTS.values()
        for model, seed in experiment.runs()
        for step in experiment.exported_steps(model)
        if experiment.protocols(model, step)
    ]


def trained(name):
    """A file of every training."""
    return [
        f"{training_folder(experiment, model, seed)}/{name}"
        for experiment in EXPERIMENTS.values()
        for model, seed in experiment.runs()
        if experiment.imported(model) is None
    ]


def attempt(wildcards, attempt):
    """Which attempt this is: from the second on, a failure that would repeat ends at once."""
    return attempt


def source_option(wildcards):
    """`--source` for the data sets whose experiment names one."""
    dataset = DATASETS.get(wildcards.dataset)
    return ["--source", dataset.source] if dataset and dataset.source else []


def dataset_needs(wildcards):
    dataset = DATASETS.get(wildcards.dataset)
    return list(dataset.assets) if dataset else []


def asset_needs(wildcards):
    return [wildcards.asset]


def asset_path(wildcards):
    return str(ASSETS[wildcards.asset].path())


def asset_kind(wildcards):
    """What `ctm convert` is told to take the file for."""
    return "teacher" if wildcards.origin == "teachers" else "ctm"


def reference_data(wildcards):
    reference = PROTOCOLS[wildcards.protocol].reference
    if isinstance(reference, ReferenceFile):
        return {}
    return prepared(reference.dataset, reference.split)


def reference_options(wildcards, input):
    return ["--data", str(Path(input.manifest).parent)] if "manifest" in input.keys() else []


def reference_needs(wildcards):
    return list(PROTOCOLS[wildcards.protocol].assets)


def protocol_path(wildcards):
    return protocol_file(wildcards.protocol)


def protocol_digest(wildcards):
    return sha256_json(PROTOCOLS[wildcards.protocol].model_dump(mode="json"))


def evaluated_weights(wildcards):
    experiment = EXPERIMENTS[wildcards.experiment]
    return weights(experiment, wildcards.model, int(wildcards.step), wildcards.seed)


def references(wildcards):
    """The reference statistics of every protocol that scores a cell of the model."""
    return [f"results/features/{name}.safetensors" for name in scoring(wildcards)]


def scoring(wildcards):
    """The protocols that score a cell of the model at the step."""
    experiment = EXPERIMENTS[wildcards.experiment]
    return list(experiment.protocols(wildcards.model, int(wildcards.step)))


def evaluation_needs(wildcards):
    protocols = [PROTOCOLS[name] for name in scoring(wildcards)]
    return sorted({name for protocol in protocols for name in protocol.feature_assets})


def evaluation_digest(wildcards):
    """Changes with whatever decides the model's rows beside its weights."""
    experiment = EXPERIMENTS[wildcards.experiment]
    protocols = [PROTOCOLS[name].model_dump(mode="json") for name in scoring(wildcards)]
    own = experiment.evaluation_hash(wildcards.model, int(wildcards.step))
    return sha256_json([own, protocols])


def evaluation_threads(wildcards):
    return EXPERIMENTS[wildcards.experiment].threads


def evaluation_limit(name):
    """One of the resources that an evaluation is given on a cluster; None: not asked for."""

    def of_experiment(wildcards):
        return EXPERIMENTS[wildcards.experiment].resources.evaluation.limits.get(name)

    return of_experiment


def training_options(wildcards, input):
    return [word for path in input.curves for word in ("--training", path)]
