"""Defects seen in public DP training code, or derived, and the tests that guard against each.

Rows that say "2r" hold on one process and on several, and name a test of each.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SAME_SUMS = (
    "distributed/test_ranks.py::test_the_sum_of_a_draw_is_the_same_for_1_to_4_processes_whatever_the_micro_batches"
)
SAME_WEIGHTS = (
    "distributed/test_resume.py::test_one_two_three_and_four_processes_release_the_same_weights_up_to_rounding"
)
ONE_NOISE = "distributed/test_ranks.py::test_noise_is_added_once_to_the_sum_whatever_the_number_of_processes"
SAME_BYTES = (
    "distributed/test_resume.py::"
    "test_one_killed_rank_ends_the_others_within_a_minute_and_the_run_goes_on_to_the_same_bytes"
)
OTHER_SIZE = (
    "distributed/test_resume.py::test_on_another_number_of_processes_lost_steps_stay_counted_and_no_noise_repeats"
)
LAUNCHED = "distributed/test_ranks.py::test_a_launch_that_became_one_process_is_refused"
ON_SEVERAL = {SAME_SUMS, SAME_WEIGHTS, ONE_NOISE, SAME_BYTES, OTHER_SIZE, LAUNCHED}

CATALOGUE: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "a loss that is a mean over the tokens of the batch couples its records",
        (
            "training/test_release_bounds.py::test_changing_another_record_leaves_my_clipped_gradient_bit_identical",
            "training/test_loss_and_clipping.py::test_the_loss_is_a_record_s_own_mean_over_its_own_targets_and_skips_the_prompt",
        ),
    ),
    2: (
        "priced as Poisson, drawn as shuffled fixed batches",
        (
            "privacy/test_mechanisms.py::test_batch_sizes_are_binomial_in_mean_and_variance",
            "training/test_examples_and_step.py::test_drawn_batches_have_binomial_sizes_and_never_a_record_twice",
            "privacy/test_mechanisms.py::test_the_sample_rate_is_exactly_the_quotient",
        ),
    ),
    3: (
        "a draw for each micro-batch, or a record several times in a step (2r)",
        (
            "privacy/test_mechanisms.py::test_a_batch_has_each_index_once_in_order_and_depends_on_keys_and_step_alone",
            "training/test_examples_and_step.py::test_packing_keeps_every_record_once_and_within_the_budget",
            "training/test_exactness.py::test_the_clipped_sum_of_ragged_records_equals_a_loop_over_them_in_float64",
            SAME_SUMS,
        ),
    ),
    4: (
        "an empty draw is skipped, or replaced by a random record (2r)",
        ("training/test_defects.py::test_steps_that_draw_nobody_happen_are_counted_and_are_noise_alone", SAME_SUMS),
    ),
    5: (
        "equal masks from equal seeds, or on every rank (2r)",
        (
            "privacy/test_mechanisms.py::test_each_record_joins_alone_and_at_the_same_rate",
            "privacy/test_randomness.py::test_fresh_keys_differ_and_seeded_keys_say_so",
            SAME_SUMS,
        ),
    ),
    6: (
        "noise scaled by a flag, or added once a rank (W > 1)",
        (
            "privacy/test_mechanisms.py::test_noise_has_the_standard_deviation_that_is_priced",
            "privacy/test_mechanisms.py::test_noise_depends_on_the_place_and_not_on_who_draws_it",
            "training/test_examples_and_step.py::test_an_empty_draw_leaves_zeros_and_is_still_noised",
            ONE_NOISE,
        ),
    ),
    7: (
        "steps without noise; noise and sums in bfloat16",
        ("training/test_defects.py::test_noise_alone_moves_weights_by_its_own_spread_in_float32_whatever_the_base",),
    ),
    8: (
        "noise from the user's seed, or repeated after a restart",
        (
            "training/test_examples_and_step.py::test_noise_differs_between_steps_tensors_runs_and_incarnations_and_repeats_only_on_replay",
            "training/test_finetune.py::test_two_runs_without_a_seed_draw_other_noise_whatever_the_training_seed",
            "training/test_finetune.py::test_what_may_not_be_released_is_readable_by_the_owner_alone",
            "privacy/test_randomness.py::test_keys_are_never_shown",
        ),
    ),
    9: (
        "divided by the number drawn, or by a private size",
        ("training/test_examples_and_step.py::test_the_update_is_divided_by_the_public_batch_size_whatever_was_drawn",),
    ),
    10: (
        "tied weights lose the head or the cross term; a layer called twice; a subclassed head",
        (
            "training/test_exactness.py::test_the_clipped_sum_of_ragged_records_equals_a_loop_over_them_in_float64",
            "training/test_exactness.py::test_without_the_cross_term_of_a_tie_the_norms_would_be_wrong",
            "training/test_exactness.py::test_ghost_refuses_tied_weights_by_both_names",
            "training/test_refused_uses.py::test_a_layer_that_is_called_twice_is_refused_by_name",
            "training/test_refused_uses.py::test_a_layer_that_is_called_twice_is_exact_under_hooks",
            "training/test_refused_uses.py::test_a_matrix_shared_by_two_linear_layers_is_refused_by_both_names",
            "training/test_refused_uses.py::test_a_layer_without_a_rule_is_refused_when_the_engine_is_attached",
        ),
    ),
    11: (
        "one record releases more than the clip",
        (
            "training/test_release_bounds.py::test_one_record_releases_at_most_the_clip_alone_and_among_others",
            "training/test_rounding.py::test_a_large_matrix_releases_at_most_the_clip_by_either_route",
            "training/test_rounding.py::test_tokens_that_cancel_cannot_hide_a_record_from_the_clip",
            "training/test_rounding.py::test_adapters_in_float32_on_a_frozen_base_in_bfloat16_stay_within_the_clip",
            "training/test_refused_uses.py::test_a_layer_that_sees_all_tokens_in_one_dimension_is_refused_and_not_clipped_token_by_token",
        ),
    ),
    12: (
        "padding_idx, and position ids that the batch shares",
        (
            "training/test_loss_and_clipping.py::test_the_pad_id_inside_a_text_is_text",
            "training/test_layer_rules.py::test_a_padding_row_that_torch_does_not_train_is_not_trained_and_not_counted",
            "training/test_refused_uses.py::test_a_padding_id_that_an_opacus_engine_would_train_is_caught_by_the_start_up_check",
            "training/test_refused_uses.py::test_position_ids_shared_by_the_batch_are_refused_and_not_clipped_as_one_record",
        ),
    ),
    13: (
        "micro-batches: the last one only, divided again, scaled before clipping, or counted as steps",
        (
            "training/test_examples_and_step.py::test_physical_batching_does_not_change_the_update",
            "training/test_user_units.py::test_a_step_over_users_equals_a_loop_over_them",
            "training/test_finetune.py::test_steps_lost_to_a_change_of_hardware_stay_counted_and_the_target_still_holds",
        ),
    ),
    14: (
        "the signal divided by the number of processes and the noise not (2r)",
        (
            "training/test_loss_and_clipping.py::test_without_a_clip_the_plain_engine_gives_the_same_sum_and_refuses_to_clip",
            SAME_WEIGHTS,
        ),
    ),
    15: (
        "bias norms, ghost other than hooks, a route cached from the first length",
        (
            "training/test_layer_rules.py::test_a_layer_alone_is_clipped_as_its_records_one_by_one",
            "training/test_exactness.py::test_both_routes_of_a_matrix_give_the_same_gradient",
            "training/test_exactness.py::test_the_route_of_a_matrix_follows_each_batch_and_not_the_first_one",
        ),
    ),
    16: (
        "one record that is not finite spoils the sum",
        (
            "training/test_defects.py::test_a_batch_with_a_record_that_is_not_finite_is_the_batch_without_it",
            "training/test_layer_rules.py::test_a_record_whose_inputs_are_not_finite_adds_exactly_nothing_by_either_route",
            "training/test_user_units.py::test_a_user_with_one_broken_record_adds_nothing_and_the_others_all_they_have",
        ),
    ),
    17: (
        "hooks on modules that are no longer trained; adapters untested at B = 0",
        (
            "training/test_defects.py::test_after_two_steps_without_noise_every_adapter_has_moved",
            "training/test_loss_and_clipping.py::test_the_start_up_check_names_a_trainable_that_no_record_reaches",
            "training/test_refused_uses.py::test_a_trainable_that_no_record_reaches_is_refused_by_name",
        ),
    ),
    18: (
        "resumed under other settings; steps run again uncounted; noise used for two sums (W changes)",
        (
            "training/test_defects.py::test_an_interrupted_run_is_not_resumed_under_any_other_setting_of_the_signal",
            "training/test_finetune.py::test_an_interrupted_run_goes_on_to_the_same_bytes_and_the_same_epsilon",
            "training/test_finetune.py::test_steps_lost_under_other_code_or_on_another_device_are_never_replayed_with_the_same_noise",
            "training/test_finetune.py::test_a_run_whose_records_changed_is_not_resumed",
            "training/test_finetune.py::test_a_run_without_its_state_is_not_resumed",
            OTHER_SIZE,
        ),
    ),
    19: (
        "an inexact resume (2r)",
        (
            "training/test_finetune.py::test_an_interrupted_run_goes_on_to_the_same_bytes_and_the_same_epsilon",
            "training/test_defects.py::test_adapters_killed_and_resumed_are_the_same_bytes_as_trained_straight",
            SAME_BYTES,
        ),
    ),
    20: (
        "a rounded sample rate, lost steps, epsilon checked at saves only",
        (
            "privacy/test_mechanisms.py::test_the_sample_rate_is_exactly_the_quotient",
            "privacy/test_budget.py::test_the_last_step_that_fits_is_exact_on_many_budgets",
            "training/test_finetune.py::test_with_noise_and_target_both_given_training_stops_before_the_step_that_would_pass",
        ),
    ),
    21: (
        "accountants that under-report or clamp",
        (
            "privacy/test_accounting.py::test_epsilon_matches_the_golden_table",
            "privacy/test_prv.py::test_one_more_step_always_costs_more_by_every_accountant",
            "privacy/test_prv.py::test_no_accountant_is_below_an_independent_lower_bound_on_a_grid",
            "privacy/test_accounting.py::test_a_number_out_of_range_is_refused_by_name_and_never_clamped",
            "training/test_finetune.py::test_a_request_that_must_change_ends_with_code_2_one_line_and_the_key",
        ),
    ),
    22: (
        "noise that misses its target, or wastes it",
        (
            "privacy/test_accounting.py::test_the_search_is_right_on_a_grid",
            "privacy/test_accounting.py::test_the_noise_found_meets_the_target_and_wastes_no_percent",
        ),
    ),
    23: (
        "amplification twice, a wrong base rate, numbers that are not finite from a file",
        (
            "privacy/test_accounting.py::test_epsilon_matches_the_golden_table",
            "privacy/test_mechanisms.py::test_an_edited_entry_is_refused",
            "privacy/test_ledger.py::test_an_edited_number_makes_the_stored_epsilon_too_small",
            "privacy/test_ledger.py::test_a_file_that_is_no_ledger_is_refused_in_one_line",
        ),
    ),
    24: (
        "a checkpoint chosen, a run stopped or labels counted by private data; adaptive clipping",
        (
            "training/test_defects.py::test_what_would_spend_unpriced_or_untie_weights_is_not_offered",
            "training/test_finetune.py::test_without_a_histogram_labels_are_uniform_and_nothing_is_paid_for_them",
            "generation/test_release.py::test_a_label_mix_nobody_paid_for_is_refused",
        ),
    ),
    25: (
        "an engine that alters the model, unseen because the comparison runs under it too",
        ("training/test_defects.py::test_under_every_engine_the_model_computes_what_it_does_in_a_process_without_us",),
    ),
    26: (
        "non-reentrant checkpointing, stray forward passes, hooks twice, leftovers",
        (
            "training/test_exactness.py::test_gradient_checkpointing_changes_nothing",
            "training/test_refused_uses.py::test_outside_a_tape_passes_are_ordinary_and_inside_stray_ones_leave_nothing",
            "training/test_refused_uses.py::test_attaching_and_detaching_leaves_the_model_as_it_was_and_may_be_repeated",
            "training/test_refused_uses.py::test_what_is_saved_while_an_engine_is_attached_is_the_model_alone",
        ),
    ),
    27: ("a launcher that starts another number of processes than wanted (2r)", (LAUNCHED,)),
    28: (
        "modules_to_save silently unties weights",
        ("training/test_defects.py::test_what_would_spend_unpriced_or_untie_weights_is_not_offered",),
    ),
    29: (
        "delta = 0, pickle, documented epsilons that are not the cost",
        (
            "training/test_finetune.py::test_a_request_that_must_change_ends_with_code_2_one_line_and_the_key",
            "test_layers.py::test_no_module_reads_or_writes_pickles",
            "privacy/test_ledger.py::test_the_file_alone_gives_the_same_epsilon_again",
        ),
    ),
}


def test_every_row_has_a_test() -> None:
    assert sorted(CATALOGUE) == list(range(1, 30))
    assert all(defect and guards for defect, guards in CATALOGUE.values())


@pytest.mark.parametrize("row", CATALOGUE)
def test_every_test_that_is_named_exists(row: int) -> None:
    for guard in CATALOGUE[row][1]:
        path, name = guard.split("::")
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, guard


@pytest.mark.parametrize("row", [row for row, (defect, _) in CATALOGUE.items() if "(2r)" in defect])
def test_a_row_about_several_processes_names_a_test_on_several(row: int) -> None:
    assert ON_SEVERAL & {*CATALOGUE[row][1]}
