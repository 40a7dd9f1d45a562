"""`python with_nemo_run_on_slurm.py CASE COUNT MARK HOST PORT USER IDENTITY JOB_DIR`: prints the experiment's id."""

import sys

import nemo_run as run
from work import CHATTER

if __name__ == "__main__":
    case, count, mark, host, port, user, identity, job_dir = sys.argv[1:]
    asked = {"comment": mark} | ({} if case == "chatter" else {"hold": True})
    tunnel = run.SSHTunnel(host=host, port=int(port), user=user, identity=identity, job_dir=job_dir)
    cluster = run.SlurmExecutor(
        account="proj-a", mem="500M", additional_parameters=asked, tunnel=tunnel, packager=run.GitArchivePackager()
    )
    with run.Experiment(case) as experiment:
        for number in range(int(count)):
            task = run.Script(inline=CHATTER if case == "chatter" else "sleep 1")
            experiment.add(task, executor=cluster.clone(), name=f"task-{number}")
        experiment.run(detach=True)
    print(experiment._id)
