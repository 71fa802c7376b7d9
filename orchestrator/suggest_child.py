"""One suggestion in a short-lived process: Optuna's GP sampler loads torch, which no supervisor may hold."""

import json
import sys

from orchestrator.study import answer, question_from_json

if __name__ == "__main__":
    print(json.dumps(answer(question_from_json(json.load(sys.stdin)))))
