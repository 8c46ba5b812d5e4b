# Configuration, the names of files, and what rules ask about them; nothing that a job runs.
import atexit
import fcntl
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from snakemake.utils import validate

from ctm_core.config import layout, read_yaml
from ctm_core.config.layout import further_weights, prepared, training_folder, weights
from ctm_core.config.project import locate, protocol_file, read_project
from ctm_core.data import assets
from ctm_core.runtime import slurm
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_json

# Jobs find the `ctm` that stands beside the Python running Snakemake, and know whose they are.
os.environ.update(
    PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    CTM_WORKFLOW=str(Path.cwd()),
    # Without a batch system each job takes its own of the GPUs that --resources gpu=N counts.
    CTM_DEVICE_LOCKS=f"{tempfile.gettempdir()}/ctm-devices-{os.getuid()}",
)

# Held as long as this process lives, so that a lock left by a killed Snakemake can be told from
# one in use (workflow/scripts/clear_dead_lock.py).
Path(".snakemake").mkdir(exist_ok=True)
alive = open(".snakemake/alive", "a")
with suppress(OSError):  # some shared file systems know no locks
    fcntl.flock(alive, fcntl.LOCK_SH)

# Slurm signals every process of a job: USR1 ahead of its time limit, TERM when it is cancelled.
# Both are for `ctm`, which needs its shell, and `tee`, until it has written its checkpoint.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
shell.prefix("set -euo pipefail; trap '' TERM; ")


def refuse(sentence):
    """End as `ctm` does on a user's mistake: one sentence and exit code 2."""
    print(f"snakemake: {sentence}", file=sys.stderr)
    sys.exit(2)


ROOT = Path(workflow.basedir)


def load_project():
    """The experiments of the config, with what they name."""
    # No `configfile:` statement: it would merge with the file given on the command line.
    if not config:
        config.update(read_yaml(locate("config/config.yaml", ROOT)))
    given = workflow.configfiles[0] if workflow.configfiles else "config/config.yaml"
    project = read_project(config, str(given), ROOT)
    validate(config, "../schemas/config.schema.json", set_default=False)
    for section in project.sections.values():
        validate(section, "../schemas/experiment.schema.json", set_default=False)
    return project


CLAIMS = locate("config/claims.yaml", ROOT)
PUBLISHED = locate("config/published.yaml", ROOT)
try:
    PROJECT = load_project()
except UserError as error:
    refuse(error)
EXPERIMENTS, FILES = PROJECT.experiments, PROJECT.files
PROTOCOLS, ASSETS, DATASETS = PROJECT.protocols, PROJECT.assets, PROJECT.datasets


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


# Made by the process that submits jobs, not by jobs.
localrules:
    all,
    table,
    figures,
    report,


def asked_of_slurm():
    """What the jobs of this run ask of Slurm, each kind once, with one of its rules."""
    found = {}
    jobs = workflow.dag.needrun_jobs(exclude_finished=False)
    for job in sorted(jobs, key=lambda job: job.rule.name):
        if not job.is_local:
            names = ("slurm_account", "slurm_partition", "qos", "constraint")
            names += ("runtime", "mem_mb", "gpu", "gpu_model")
            asked = {name: job.resources.get(name) for name in names}
            found.setdefault((*asked.values(), job.threads), (job.rule.name, asked, job.threads))
    return found.values()


def check_slurm():
    """End what a killed Snakemake left running, and hear what Slurm would refuse."""
    if jobs := slurm.jobs_of(Path.cwd()):
        print(
            f"Stopping Slurm jobs that a killed Snakemake left behind: {', '.join(jobs)}; their "
            "work is continued",
            file=sys.stderr,
        )
        if not slurm.stop(jobs):
            refuse(f"Slurm jobs do not end: {', '.join(jobs)}; try again once they are gone")
    for rule_name, asked, threads in asked_of_slurm():
        if asked["slurm_account"] and not slurm.keeps_accounts():
            refuse(
                f"slurm_account is {asked['slurm_account']}, but this Slurm keeps no accounts; "
                "take it out of slurm/config.yaml"
            )
        if reason := slurm.refusal(asked, threads):
            told = ", ".join(f"{name}={value}" for name, value in asked.items() if value)
            refuse(
                f"Slurm refuses the job {rule_name}: {reason}; it was asked for {told}, "
                f"threads={threads}: correct slurm/config.yaml, or the resources of the experiment"
            )


onstart:
    if workflow.executor_plugin.name == "slurm":
        check_slurm()
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
    return FILES[wildcards.experiment]


def start_options(wildcards, input):
    return [
        word
        for name in ("teacher", "init", "init_average")
        if name in input.keys()
        for word in (f"--{name.replace('_', '-')}", input[name])
    ]


def evaluated(name):
    """A file of every evaluation."""
    return layout.evaluated(EXPERIMENTS.values(), name)


def trained(name):
    """A file of every training."""
    return layout.trained(EXPERIMENTS.values(), name)


def site(name):
    """One of the settings of slurm/config.yaml, as text; None where there is none."""
    given = workflow.resource_settings.default_resources or {}
    return str(given[name].raw).strip("'\"") if name in given else None


def limits(share):
    """What jobs of a kind ask of a cluster: the experiment's wishes within the cluster's bounds."""
    asked = dict(share.limits)
    if longest := site("max_runtime"):
        asked["runtime"] = min(asked["runtime"], int(longest))
    if share.gpus:
        for name, setting in (("gpu_model", "gpu_type"), ("slurm_partition", "gpu_partition")):
            if value := site(setting):
                asked[name] = value
    return asked


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
    return layout.reference_data(PROTOCOLS[wildcards.protocol])


def folder_options(input, options):
    """An option for the folder of each prepared data set that is an input, by its manifest."""
    return [
        word
        for name, option in options.items()
        if name in input.keys()
        for word in (option, str(Path(input[name]).parent))
    ]


def reference_options(wildcards, input):
    return folder_options(input, {"manifest": "--data", "held_out_manifest": "--held-out"})


def reference_needs(wildcards):
    return list(PROTOCOLS[wildcards.protocol].assets)


def protocol_path(wildcards):
    return protocol_file(wildcards.protocol, ROOT)


def protocol_digest(wildcards):
    return sha256_json(PROTOCOLS[wildcards.protocol].model_dump(mode="json"))


def evaluated_weights(wildcards):
    experiment = EXPERIMENTS[wildcards.experiment]
    return weights(experiment, wildcards.model, int(wildcards.step), wildcards.seed)


def references(wildcards):
    """The reference statistics of every protocol that scores a cell of the model."""
    return [layout.reference(name) for name in scoring(wildcards)]


def scoring(wildcards):
    """The protocols that score a cell of the model at the step."""
    experiment = EXPERIMENTS[wildcards.experiment]
    return list(experiment.protocols(wildcards.model, int(wildcards.step)))


def evaluation_data(wildcards):
    experiment = EXPERIMENTS[wildcards.experiment]
    return layout.evaluation_data(experiment, PROTOCOLS, wildcards.model, int(wildcards.step))


def evaluation_options(wildcards, input):
    teacher = ["--teacher", input.teacher] if "teacher" in input.keys() else []
    data = {"train_manifest": "--data", "test_manifest": "--data"}
    return [*teacher, *folder_options(input, data)]


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
        share = EXPERIMENTS[wildcards.experiment].resources.evaluation
        return limits(share).get(name, site(name))

    return of_experiment


def training_options(wildcards, input):
    return [word for path in input.curves for word in ("--training", path)]
