"""What a plan takes from a trial run: what each fact rests on, where it is checked, and what happens if it fails.

A plan is a hypothesis: it is made from one trial, and a program may do something else in the next run.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FACTS", "Fact"]


@dataclass(frozen=True)
class Fact:
    """Something that a plan believes of a program.

    - `rests_on`: how it was found. `may_change_with`: what could make it false later.
    - `checked`: where, and how often. `otherwise`: the way on where it does not hold.
    """

    name: str
    rests_on: str
    may_change_with: str
    checked: str
    otherwise: str


FACTS = (
    Fact(
        "sites",
        "the names and plates of a trial's traces",
        "a branch on a draw, an argument, Python's state",
        "every run: `steps.choice`, `steps.run.run_pair`, `Dependencies.fit`; where each is drawn once, `steps.plain`",
        "planned anew; row by row if it happens often, each run with the sites that it has",
    ),
    Fact(
        "matched",
        "the guide's latent sites are the model's",
        "the same",
        "every run: `inspection.trial.check_matched`",
        "SiteMatchError that names the site",
    ),
    Fact(
        "plate_dims",
        "the deepest plate of a trial",
        "the same",
        "every run: the dims of all sites",
        "planned for more dims",
    ),
    Fact(
        "subsamples",
        "the elements that a plate had in the first run of a sum, or of a posterior",
        "a plate whose size is drawn",
        "every run: `programs.pair.KeepSubsamples`, by the sizes of plate and subsample",
        "a subsample for each size; in a posterior, runs at every joint value",
    ),
    Fact(
        "rows",
        "the operations of a run over rows of values, and a row's terms beside those of a run of it alone",
        "a shape or a branch that hangs on a value",
        "where a plan is made: `inspection.trial_rows.check_rows`",
        "row by row, with a warning",
    ),
    Fact(
        "branch",
        "the operations that a run makes",
        "arguments, parameters, buffers, Python's state",
        "every call: `inspection.decisions.WhatDecides` looks at what may decide; where that is new or cannot be "
        "watched, what the runs do is noted as they go (`planning.branches.Branches`)",
        "planned anew, up to 64 branches; then believed, with a warning",
    ),
    Fact(
        "operations",
        "the operations of a run, followed from each draw on: rows and plate elements that they keep apart stay so, "
        "whatever the numbers, and what they may mix is taken to be mixed; laws of torch's and Pyro's that score each "
        "entry by itself are not followed, but known to do so (`programs.alike_sites.entries_of_law`)",
        "another branch",
        "where a plan is made: `inspection.apart`; what a run does, as said of `branch`",
        "looked at by values, as are operations that are not known: `rows`, `values`, `elements`",
    ),
    Fact(
        "generic",
        "looks by values at numbers that are neither 0 nor alike: parameters, and tensors of one number; where "
        "operations are not known, at others for what the programs are given or hold as well",
        "none, but for the chance that numbers taken at random cancel",
        "where a plan is made: `inspection.generic_numbers`, in every look by values",
        "the plan is that of the numbers as they are, where the program does not run at others",
    ),
    Fact(
        "values",
        "the same, of rows of values at the sites that are summed out, and at these alone",
        "the same",
        "where a plan is made: `inspection.enumerability.why_not_over_values`; in every run at its own draws where "
        "Python sees one and the model's own sites are summed out: `sums.marginalisation.why_not_at_once_here`",
        "one value after another, each with the shape of a draw",
    ),
    Fact(
        "elements",
        "the operations of a run, or the terms of a plate's elements at values that differ by halves of the plate",
        "the same",
        "where a plan is made: `joined_elements`, `crossing_site`; in every exact sum by the dims of its terms",
        "planned anew: joint values of all elements, another estimator under auto, or EnumerationError; "
        "sampled: all of the plate's terms for each element",
    ),
    Fact(
        "of_one",
        "what the elements of a plate have to do with each other, where it has several in the trial",
        "a plate of one element that has more later: a first call with one datum",
        "every run, where the trial has such a plate: `planning.branches.watching_sizes`, `elbos.collapse`; where "
        "Python sees draws, which may decide sizes, nothing is taken of it",
        "planned anew; where the trial has one element again, they are taken to share terms",
    ),
    Fact(
        "apart",
        "the plates that all terms which a site's draw may change are in, by a trial's costs",
        "a branch on a draw, an argument, Python's state; larger plates",
        "every run: `Costs.crossed_plates`, for estimators that judge elements one by one",
        "planned anew, with rows for each element, or SharedTermsError with their number",
    ),
    Fact(
        "enumerated_dims",
        "every term shows the dims of the draws that reach it: by value, distribution, mask or scale",
        "a chain that looks further back than its history",
        "every run: `sums.enumerated_sites.EnumerateSites`",
        "made again with dims of their own for draws of the guide that the model sees beside each other; else "
        "EnumerationError that names history and the site",
    ),
    Fact(
        "dependencies",
        "which terms a site's draw moves, by operations traced and by other values",
        "whatever Python reads",
        "every run: values and versions of all that the code can see, `inspection.wiring`; but for names of sites not "
        "where every term depends on every draw, so that no more could: `Plan.whole`",
        "looked at anew; unknown, so that costs are whole, where something cannot be watched",
    ),
    Fact(
        "smoothness",
        "a relaxed value is used smoothly",
        "comparisons, casts, rounding, indices of sorts",
        "once for each state of the dependencies and at every 64th run: `relaxations.jumps`",
        "an error from estimators that rest on slopes, one warning from relaxations",
    ),
    Fact(
        "trials",
        "the largest number of trials of a relaxed Binomial",
        "the data",
        "every run that is not captured: `state_trials`",
        "the relaxation goes up to the larger number from then on",
    ),
    Fact(
        "counts",
        "how far a sum over a count without an end has to go, and the largest number of trials of Binomials",
        "rates, and data in the tail of a prior",
        "every run, captured ones too: `sums.left_out`, `sums.counts.Counts.judge`",
        "run again with more terms; EnumerationError where that does not end, or where no bound is known",
    ),
    Fact(
        "places",
        "each term that reads a structure which is summed by its partition function reads one place of it, or place by "
        "place: by operations followed",
        "a branch on an argument, Python's state",
        "every run: `inspection.places.Places`",
        "EnumerationError that names the site and the term",
    ),
)
"""The facts of a plan."""
