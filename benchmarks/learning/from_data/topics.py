"""Topics of Reuters news, held against the package lda and scikit-learn by the completion of documents.

    python -m benchmarks.learning.from_data.topics

Protocol: the words of each test document are cut in two halves at random, once, when they are loaded. All that is known
of the document's topics comes from the first; perplexity is that of the second half's words, each given these shares
and the topics that were learned from the training documents. Ours are completed as the package lda does it (a fixed
point of expected counts); scikit-learn's by its own `transform`. The mark is for topics summed out in the model.
"""

from __future__ import annotations

from typing import Any

from benchmarks.learning.from_data.line import Line
from models.data.catalogue import load_data
from models.data.documents import Documents
from models.programs.topics import TopicModel
from models.reports.pattern_pictures import top_words
from models.runs.config import configure
from models.runs.evaluation import isolated
from models.runs.findings import findings
from models.runs.training import Training

__all__ = ["lines", "trained"]

RATIO = 1.05
REUTERS: dict[str, Any] = {"data": "reuters", "categories": 20, "batch_size": 50, "steps": 400}


def trained(settings: dict[str, Any], estimator: str = "enumerate", guide: str = "marginal") -> tuple[TopicModel, Any]:
    """The model after a run of these settings, and its data."""
    config = configure("topics", estimator, guide=guide, **settings)
    data = load_data(config.data)
    with isolated(config.seed):
        training = Training(config, data)
        training.run()
    assert isinstance(training.program, TopicModel)
    return training.program, data


def lines(seed: int = 0, settings: dict[str, Any] = REUTERS) -> list[Line]:
    """Raises `DataError` where the data are not installed. Without the package lda, the mark is scikit-learn's."""
    return _judged(*trained({**settings, "seed": seed}))


def _judged(program: TopicModel, data: Documents) -> list[Line]:
    found = findings(program, data, data.test)
    own, by_variation = found["perplexity"], found["scikit_learn_perplexity"]
    rival = found.get("lda_perplexity", by_variation)
    name = "the package lda's" if "lda_perplexity" in found else "scikit-learn's"
    return [
        Line(
            "topics",
            f"{data.name}: perplexity of the second halves of test documents",
            f"at most {RATIO} of {name}",
            f"{own:.0f} ({name} {rival:.0f}, scikit-learn's {by_variation:.0f})",
            own <= RATIO * rival,
            own,
        )
    ]


if __name__ == "__main__":
    program, data = trained(REUTERS)
    for line in _judged(program, data):
        print(f"{line.claim}: {line.found}, mark: {line.mark}; {'right' if line.right else 'short'}")
    for words in top_words(program, data, 8):
        print(", ".join(words))
