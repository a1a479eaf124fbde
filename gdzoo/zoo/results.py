"""results.json: its schema."""

from pathlib import Path

from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import RESULTS


def other_results(folder: Path, results: dict) -> list[dict]:
    """The results of the other strategies in the same zoo, after the same task and measured alike.

    A folder that cannot be read is none of them: it must not cost a model that is trained.
    """
    same = ("benchmark", "seed", "task", "tasks", "evaluation")
    found = []
    for file in sorted(folder.parent.glob(f"{results['benchmark']}*-task{results['task']}/{RESULTS}")):
        try:
            other = read_json(file)
        except ValueError:
            continue
        if other.get("strategy") != results["strategy"] and all(other.get(name) == results[name] for name in same):
            found.append(other)
    return found
