"""`python -m trial_worker` is a worker's supervisor; `foldtune worker` starts it."""

from trial_worker.supervisor import main

if __name__ == "__main__":
    main()
