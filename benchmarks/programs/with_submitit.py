"""`python with_submitit.py CASE FOLDER COUNT`."""

import sys

import submitit
from work import touch

if __name__ == "__main__":
    case, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    executor = (submitit.DebugExecutor if case == "direct" else submitit.LocalExecutor)(f"{folder}/submitit")
    with executor.batch():
        jobs = [executor.submit(touch, f"{folder}/{number}") for number in range(count)]
    for job in jobs:
        job.result()
