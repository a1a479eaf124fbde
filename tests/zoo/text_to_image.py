"""Made-up results of text-to-image models, with known numbers, for the tests of cards, schema and report."""

from gdzoo.zoo.names import repo_name

PROMPTS = {1: ["a red zero", "a blue zero"], 2: ["a red one"], 3: ["a blue one"]}
COST = {"seconds": 61.5, "student_passes": 64, "teacher_passes": 96, "peak_memory_mib": 512}
OLD_DISTANCE = {"generative_distillation": 100.0, "generative_replay": 300.0}


def group(name: str, task: int | None, guidance: float, **changes) -> dict:
    known = {"accuracy": 0.875, "attributes": 0.9375, "confusion": [], "distance": 120.5, "kid": 0.25}
    drift = {"drift": 0.125, "drift_fid": 33.0, "drift_kid": 0.5}
    counts = {"prompts": 2, "drawings": 256, "real_images": 90}
    return (
        {"group": name, "task": task, "taught": task is not None, "guidance": guidance}
        | counts
        | known
        | drift
        | changes
    )


def groups(task: int) -> list[dict]:
    """One for each task so far, and general captions, which the evaluator does not know."""
    unknown = {"accuracy": None, "attributes": None, "confusion": None, "distance": None, "kid": None, "real_images": 0}
    wrong = [{"asked": "a red zero", "predicted": "a red one", "count": 12}]
    return [
        row
        for guidance in (1.5, 1.0)
        for row in (
            *(
                group(f"task {k}", k, guidance, accuracy=1 - 0.125 * (task - k), confusion=wrong)
                for k in range(1, task + 1)
            ),
            group("preserved", None, guidance, **unknown),
        )
    ]


def metrics(strategy: str, seed: int, task: int) -> dict:
    distance = OLD_DISTANCE.get(strategy, 500.0) + task + {42: 0.0, 69: 2.0}[seed]
    old = {"old_accuracy": 0.875, "old_distance": distance, "old_kid": 0.5} if task > 1 else {}
    found = old | {"new_accuracy": 0.9375, "new_distance": 120.5, "new_kid": 0.25, "drift": 0.125, "drift_fid": 33.0}
    return found | {f"{name}_guidance_1": value * 2 for name, value in found.items()}


def entry(strategy: str, seed: int, task: int) -> dict:
    return {"task": task, "metrics": metrics(strategy, seed, task), "groups": groups(task), "cost": COST}


def text_to_image_results(
    task: int = 2,
    strategy: str = "generative_distillation",
    seed: int = 42,
    benchmark: str = "tiny-captions",
    **changes,
) -> dict:
    """The results.json of a chain from scratch, or of one on a stranger's model (pretrained=...)."""
    entries = [entry(strategy, seed, k) for k in range(1, task + 1)]
    return {
        "schema_version": 1,
        "kind": "text-to-image",
        "gdzoo": "0.2.0",
        "run": f"{strategy}-{seed}",
        "benchmark": benchmark,
        "strategy": strategy,
        "seed": seed,
        "task": task,
        "base_model": f"gdzoo/{repo_name(benchmark, strategy, seed, task - 1)}" if task > 1 else None,
        "pretrained": None,
        "license": "apache-2.0",
        "rank": None,
        "tasks": [
            {"task": k, "classes": [10 * k + i for i in range(len(names))], "names": names, "images": 90 * len(names)}
            for k, names in PROMPTS.items()
        ],
        "prompts": [
            {"task": k, "prompt": prompt, "class_prompt": None} for k in range(1, task + 1) for prompt in PROMPTS[k]
        ],
        "guidance_scale": 1.5,
        "eval_steps": 20,
        "samples": [
            {"task": k, "prompt": prompt, "file": f"samples/task{k}-{i}.png"}
            for k in range(1, task + 1)
            for i, prompt in enumerate(PROMPTS[k])
        ],
        **entries[-1],
        "evaluation": {
            "drawings": 256,
            "seed": 0,
            "guidance_scale": 1.5,
            "eval_steps": 20,
            "original": "gdzoo/tiny-captions-task1",
            "evaluator": "gdzoo/tiny-captions-evaluator",
            "features": "gdzoo/tiny-captions-evaluator",
            "fingerprint": "e72bfbf5",
            "feature_dim": 64,
            "distance_samples_needed": 65,
            "reference_split": "test",
        },
        "history": entries,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": "2 x Some CPU",
        **changes,
    }


def concepts(task: int = 2, **changes) -> dict:
    """The results.json of a chain on a stranger's model, with LoRA and without an evaluator."""
    base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    taught = [("a photo of sks dog", "a photo of a dog"), ("a photo of <pot|1> pot", None)][:task]
    known = {
        "benchmark": "pets",
        "base_model": "gdzoo/pets-task1" if task > 1 else base,
        "pretrained": base,
        "license": "creativeml-openrail-m",
        "rank": 8,
        "tasks": [
            {"task": k, "classes": [k - 1], "names": [prompt], "class_prompts": [of], "images": 5}
            for k, (prompt, of) in enumerate(taught, start=1)
        ],
        "prompts": [
            {"task": k, "prompt": prompt, "class_prompt": of} for k, (prompt, of) in enumerate(taught, start=1)
        ],
        "samples": [
            {"task": k, "prompt": prompt, "file": f"samples/task{k}-0.png"} for k, (prompt, _) in enumerate(taught, 1)
        ],
    }
    return text_to_image_results(task, **known | changes)
