"""Places and profile of the CRP's binding sites, beside EM. Marks: most places within a base, the profile as near as
EM's, and the same likelihood, as it is the same maximum.

    python -m benchmarks.learning.from_data.motif
"""

from __future__ import annotations

from benchmarks.learning.from_data.line import Line
from models.data.catalogue import load_data
from models.runs.config import configure
from models.runs.evaluation import isolated
from models.runs.findings import findings
from models.runs.training import Training

__all__ = ["lines"]

PLACES = 0.9
"""Of the sequences in which the aligned sites' own frequencies find the place to a base: in the others chance has made
a better site than the true one, and no profile can tell."""
DISTANCE = 0.01
"""How much farther from the sites' frequencies than EM's the profile may be, in total variation."""
NATS = 0.02
"""By which the likelihood of a sequence may be below EM's."""


def lines(seed: int = 0, data: str = "crp-sites", steps: int = 300) -> list[Line]:
    """Places are summed in the model, so that the objective is EM's; raises `DataError` for data that are absent."""
    sequences = load_data(data)
    config = configure("motif", "enumerate", data=data, guide="marginal", steps=steps, seed=seed)
    with isolated(config.seed):
        training = Training(config, sequences)
        training.run()
    found = findings(training.program, sequences, sequences.test)
    places, by_em = found["places_found"], found["em_places_found"]
    distance, of_em = found["profile_distance"], found["em_profile_distance"]
    likelihood, reached = found["test_log_likelihood"], found["em_log_likelihood"]
    return [
        Line(
            "motif",
            f"{data}: places within one base, of the {found['possible_places']:.0%} that the true profile finds",
            f"at least {PLACES:.0%}",
            f"{places:.1%} (EM {by_em:.1%})",
            places >= PLACES,
            places,
        ),
        Line(
            "motif",
            f"{data}: the profile's total variation from the aligned sites'",
            f"at most EM's + {DISTANCE}",
            f"{distance:.3f} (EM {of_em:.3f})",
            distance <= of_em + DISTANCE,
            distance,
        ),
        Line(
            "motif",
            f"{data}: log-likelihood of a sequence",
            f"at least EM's - {NATS} nats",
            f"{likelihood:.3f} (EM {reached:.3f})",
            likelihood >= reached - NATS,
            likelihood,
        ),
    ]


if __name__ == "__main__":
    for line in lines():
        print(f"{line.claim}: {line.found}, mark: {line.mark}; {'right' if line.right else 'short'}")
