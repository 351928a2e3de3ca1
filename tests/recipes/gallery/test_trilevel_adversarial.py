"""The three levels are solved together, and what they learn withstands more than training without an adversary."""

from claims import above, below, claims, trained, untrained

SHORT = ("recipe=trilevel_adversarial", "steps=10", "data.limit=200")
FIXED = ("0.001", "0.01", "0.1", "1")


@claims(loss_over_best_fixed=below(1.05), gain_by_adversary=above(0), least_cost_of_attacks=above(0))
def decay(seed):
    findings = trained(*SHORT, f"data.split_seed={seed}", seed=seed).findings()  # all weights are 0 at first
    loss, clean, robust = (findings[name] for name in ("held_out_loss", "clean_accuracy", "robust_accuracy"))
    return {
        "loss_over_best_fixed": loss["learned"] / min(loss[f"fixed at {fixed}"] for fixed in FIXED),
        "gain_by_adversary": robust["learned"] - robust[f"no adversary, {findings['weight_decay']:.3g}"],
        "least_cost_of_attacks": min(clean[name] - robust[name] for name in clean),
    }


def test_the_learned_decay_does_as_well_as_the_best_fixed_one_and_the_adversary_pays():
    decay.check()


def test_adversary_and_classifier_are_one_block():
    graph = untrained(*SHORT, seed=0).graph
    assert graph.blocks("decay")[0].levels == ("adversary", "classify")  # they read each other
