# The configuration, and parameters of rules that depend on it. The files of each job are listed in
# ctm_core/config/dag.py.
import fcntl
import os
import shlex
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from snakemake.utils import validate

from ctm_core.config import dag, layout, read_yaml
from ctm_core.config.project import locate, protocol_file, read_project
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file, sha256_json

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT / "workflow/scripts"))
import preflight
import snakemake_internals

# Jobs use the `ctm` of the Python that runs Snakemake, and carry a mark of this directory.
os.environ.update(
    PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    CTM_WORKFLOW=str(Path.cwd()),
)
# A job that a batch system starts has GPUs of its own. Others, inside an allocation too, claim
# theirs of those that --resources gpu=N counts.
if snakemake_internals.starts_jobs_itself(workflow):
    for sentence in preflight.changed_files():
        preflight.say(sentence)
    os.environ.update(
        CTM_DEVICE_LOCKS=f"{tempfile.gettempdir()}/ctm-devices-{os.getuid()}",
        CTM_WORKFLOW_JOB=os.environ.get("SLURM_JOB_ID", ""),
    )
elif snakemake_internals.was_submitted(workflow):
    os.environ.pop("CTM_DEVICE_LOCKS", None)

# Locked while this process lives, which distinguishes a Snakemake lock in use from one that a
# killed Snakemake left behind (workflow/scripts/clear_dead_lock.py).
Path(".snakemake").mkdir(exist_ok=True)
alive = open(".snakemake/alive", "a")
with suppress(OSError):  # some shared file systems know no locks
    fcntl.flock(alive, fcntl.LOCK_SH)

# Slurm sends this signal to all processes of a job before its time limit; only `ctm` handles it.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def load_project():
    """Read the config and the files that it names."""
    # No `configfile:` statement: it would merge with the file given on the command line.
    if not config:
        config.update(read_yaml(locate("config/config.yaml", ROOT)))
    given = snakemake_internals.config_file(workflow) or "config/config.yaml"
    project = read_project(config, given, ROOT)
    validate(config, "../schemas/config.schema.json", set_default=False)
    for section in project.sections.values():
        validate(section, "../schemas/experiment.schema.json", set_default=False)
    return project


try:
    PROJECT = load_project()
except UserError as error:
    preflight.refuse(error)
EXPERIMENTS = PROJECT.experiments
TABLE, FIGURES, REPORT = dag.table(PROJECT), dag.figures(PROJECT), dag.report(PROJECT)
CLAIMS = locate("config/claims.yaml", ROOT)
PUBLISHED = locate("config/published.yaml", ROOT)
REFERENCES = [
    path
    for name in sorted(EXPERIMENTS)
    if os.path.exists(path := locate(f"config/reference/{name}.json", ROOT))
]


# Run by the submitting process itself.
localrules:
    all,
    table,
    figures,
    report,


onstart:
    for sentence in PROJECT.left_out:
        preflight.say(sentence)
    preflight.check(workflow, PROJECT.assets)


wildcard_constraints:
    experiment="|".join(EXPERIMENTS),
    protocol="|".join(PROJECT.protocols),
    asset="|".join(PROJECT.assets),
    origin="teachers|released",
    dataset="[a-z0-9][a-z0-9_-]*",
    model="[a-z0-9][a-z0-9_-]*",
    split="train|test",
    seed=r"\d+",
    step=r"\d+",


# -- inputs and parameters ----------------------------------------------------------------------


def reads(kind):
    """The inputs of a job of a kind, such as `dag.evaluation`."""
    return lambda wildcards: kind(PROJECT, **dict(wildcards.items())).reads


def needs(kind):
    """The external files that a job of a kind reads."""
    return lambda wildcards: list(kind(PROJECT, **dict(wildcards.items())).assets)


def options(**names):
    """An option for each input of these names; of prepared data it takes the folder."""

    def words(wildcards, input):
        made = []
        for name, option in names.items():
            paths = input[name] if name in input.keys() else []
            for path in [paths] if isinstance(paths, str) else paths:
                folder, file = os.path.split(path)
                made += [option, folder if file == "manifest.json" else path]
        return made

    return words


def experiment_file(wildcards):
    return PROJECT.files[wildcards.experiment]


def source_option(wildcards):
    """Where a data set's files are, as its experiment says, quoted for the shell."""
    for name, experiment in EXPERIMENTS.items():
        dataset = experiment.dataset
        if dataset.name == wildcards.dataset and dataset.reader:
            return shlex.join(["--config", PROJECT.files[name]])
        if dataset.name == wildcards.dataset and dataset.source:
            return shlex.join(["--source", dataset.source])
    return ""


def data_needs(wildcards):
    """The external files of a data set, and how own images are prepared, source included."""
    job = dag.data(PROJECT, wildcards.dataset, wildcards.split)
    return [*job.assets, *(f"{key}={value}" for key, value in job.settings.items())]


def asset_path(wildcards):
    return str(PROJECT.assets[wildcards.asset].path())


def asset_kind(wildcards):
    """The `--kind` of `ctm convert`."""
    return "teacher" if wildcards.origin == "teachers" else "ctm"


def protocol_path(wildcards):
    return protocol_file(wildcards.protocol, ROOT)


def protocol_digest(wildcards):
    return sha256_json(PROJECT.protocols[wildcards.protocol].model_dump(mode="json"))


def evaluation_digest(wildcards):
    """Changes with anything, except the weights, that affects the model's rows."""
    experiment, step = EXPERIMENTS[wildcards.experiment], int(wildcards.step)
    names = experiment.protocols(wildcards.model, step)
    protocols = [PROJECT.protocols[name].model_dump(mode="json") for name in names]
    return sha256_json([experiment.evaluation_hash(wildcards.model, step), protocols])


# -- which job is next ---------------------------------------------------------------------------

# Where cores are few: what every evaluation waits for, trainings, then the longest evaluations, so
# that no core is idle at the end.
REFERENCES_FIRST, TRAININGS_NEXT = 30_000, 10_000


def evaluation_length(wildcards):
    """Network evaluations of a sample of each cell."""
    cells = EXPERIMENTS[wildcards.experiment].cells(wildcards.model, int(wildcards.step))
    return sum(cell.nfe for cell in cells)


# -- what jobs ask of a machine -----------------------------------------------------------------


def site(name):
    """A setting of slurm/config.yaml."""
    return snakemake_internals.default_resource(workflow, name)


def limits(share):
    """Resources that a job requests: those of the experiment, within the limits of the cluster."""
    asked = dict(share.limits)
    if longest := site("max_runtime"):
        asked["runtime"] = min(asked["runtime"], int(longest))
    if share.gpus:
        for name, setting in (("gpu_model", "gpu_type"), ("slurm_partition", "gpu_partition")):
            if value := site(setting):
                asked[name] = value
    return asked


def evaluation_limit(name):
    """One of the resources that an evaluation requests on a cluster; None: not requested."""

    def of_experiment(wildcards):
        share = EXPERIMENTS[wildcards.experiment].resources.evaluation
        return limits(share).get(name, site(name))

    return of_experiment


def evaluation_threads(wildcards):
    return EXPERIMENTS[wildcards.experiment].threads


def attempt(wildcards, attempt):
    """The number of the attempt; from 2 on, a job ends at once if its failure would repeat."""
    return attempt
