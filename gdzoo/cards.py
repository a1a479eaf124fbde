"""What does the card say? A pure function of results and configuration."""


def pipeline_card(results: dict, config: dict) -> str:
    return "todo"


def evaluator_card(results: dict) -> str:
    return "todo"
