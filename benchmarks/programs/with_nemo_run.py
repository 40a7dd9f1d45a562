"""`python with_nemo_run.py CASE FOLDER COUNT`."""

import sys

import nemo_run as run
from work import touch

if __name__ == "__main__":
    case, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    tasks = [run.Partial(touch, path=f"{folder}/{number}") for number in range(count)]
    if case == "direct":
        run.run(tasks[0], direct=True)
    elif case == "local":
        run.run(tasks[0], executor=run.LocalExecutor(), name="local")
    else:
        with run.Experiment("many") as experiment:
            for number, task in enumerate(tasks):
                experiment.add(task, executor=run.LocalExecutor(), name=f"task-{number}")
            experiment.run()
