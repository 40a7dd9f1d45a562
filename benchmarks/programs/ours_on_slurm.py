"""`python ours_on_slurm.py CASE COUNT MARK CONFIG JOB_DIR`: jobs on the host "lab"; prints the experiment's id."""

import sys

from work import CHATTER

import launcher as run

if __name__ == "__main__":
    case, count, mark, config, job_dir = sys.argv[1:]
    asked = {"comment": mark} | ({} if case == "chatter" else {"hold": True})
    tunnel = run.SSHTunnel("lab", ssh_config=config, job_dir=job_dir)
    cluster = run.SlurmExecutor(account="proj-a", mem="500M", additional_parameters=asked, tunnel=tunnel)
    with run.Experiment(case) as experiment:
        for number in range(int(count)):
            task = run.Script(inline=CHATTER if case == "chatter" else "sleep 1")
            experiment.add(task, executor=cluster, name=f"task-{number}")
        experiment.run(detach=True)
    print(experiment.id)
