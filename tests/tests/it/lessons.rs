//! What goes wrong where runs are spread over two databases, and what stops it here: a type, without which the mistake
//! does not compile, a test, which fails with it, or a check of the sources, which finds it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use store::{Idempotency, KeyScope};

/// What stops a mistake.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stop {
    /// This type of the store.
    Type(&'static str),
    /// This test.
    Test(&'static str),
    /// This check of the sources, in `.ci`.
    Check(&'static str),
    /// Nothing of the store's: it is for this part of a system around it.
    Elsewhere(&'static str),
}

use Stop::{Check, Elsewhere, Test, Type};

/// Parts of a system that are not the store's.
const OTHERS: [&str; 4] = ["resolver", "replication", "application", "naming"];

/// All of them, by number.
#[rustfmt::skip]
const LESSONS: &[(u32, &str, Stop)] = &[
    // To the wrong database.
    (1, "an id that does not route is taken for one that does", Test("only_run_and_batch_ids_route")),
    (2, "an item is looked for where its own id points", Test("items_are_routed_by_their_batch")),
    (3, "rows of one table are written by one key and read by another", Test("items_are_routed_by_their_batch")),
    (4, "a row that names no owner is put anywhere", Test("a_checkpoint_lies_beside_the_run_it_is_for")),
    (5, "snapshots are read in one fixed database", Test("the_residency_of_a_run_decides_where_its_snapshots_are_read")),
    (6, "attempts are read in one fixed database", Test("attempts_of_a_run_are_asked_of_its_database_alone")),
    (7, "a waitpoint of a run is put where its id's shape says", Type("Placement")),
    (8, "a token that nobody owns falls into a default", Test("a_waitpoint_is_stored_as_it_is_returned_in_its_place")),
    (9, "the read that fails and the read that may miss go different ways", Test("a_run_that_is_not_there_is_missing_once_and_by_the_name_of_its_database")),
    (10, "a caller's transaction of the wrong database is written into", Type("RunStore")),
    (11, "tables are written past the routing", Check("fence")),
    (12, "edges are removed in another database than their run's", Test("exactly_the_named_edges_are_removed")),
    (13, "edges to waitpoints elsewhere are not written", Test("blocking_writes_each_edge_and_connection_once_wherever_the_waitpoint_is")),
    (14, "a foreign key refuses what lies across the seam", Test("the_foreign_keys_of_the_seam_fall_in_a_migration_of_their_own")),
    (15, "a completed waitpoint elsewhere cannot be linked", Test("a_run_waits_for_tokens_of_either_database_and_goes_on_when_all_are_done")),
    (16, "a completion changes no row where the id's shape points", Test("a_completion_goes_where_the_waitpoint_is")),
    (17, "those who wait in the other database are not woken", Test("a_run_waits_for_tokens_of_either_database_and_goes_on_when_all_are_done")),
    (18, "what hangs on a waitpoint is looked for beside it only", Test("what_hangs_on_a_waitpoint_is_gathered_from_both_databases")),
    (19, "both databases are asked for ids that route", Test("runs_are_read_by_id_with_one_statement_for_each_database_that_has_ids")),
    (20, "a filter that names a run is asked of all", Test("a_list_of_one_kind_of_id_leaves_the_other_database_alone")),
    (21, "a miss is looked for elsewhere, which hides stray copies", Test("a_copy_in_the_wrong_database_is_invisible_to_whoever_names_the_run")),
    (22, "a part is built without its databases and takes a default", Test("a_router_needs_one_store_for_each_database")),
    (23, "a pool of one database is handed where another belongs", Test("a_store_of_one_schema_takes_no_database_of_the_other")),
    (24, "a split is off without anybody noticing", Test("a_setting_that_is_missing_or_malformed_is_named")),
    (25, "an older engine's writer goes past the store", Elsewhere("application")),
    (26, "an id of an older form is sent to one database", Test("a_friendly_id_of_the_oldest_form_is_looked_for_everywhere")),
    (27, "a write without a key goes to a default", Test("a_text_that_cannot_be_stored_is_refused_before_any_statement_by_all_others")),
    // Too early on a replica.
    (28, "that the primary is wanted gets lost on the way to the owner", Test("a_read_that_may_be_stale_goes_to_the_replica_and_any_other_to_the_primary")),
    (29, "what a caller wants is guessed from what it passes", Type("Read")),
    (30, "a row that was just changed is read again elsewhere", Test("a_completion_that_waited_for_another_returns_what_that_one_stored")),
    (31, "a replica decides whether anything is pending", Test("a_wait_is_decided_by_what_the_replica_does_not_know_yet")),
    (32, "a replica decides whether a run can start", Test("a_write_is_decided_by_what_the_replica_does_not_know_yet")),
    (33, "a replica decides whether a batch is over", Test("a_batch_is_ended_by_what_the_replica_does_not_know_yet")),
    (34, "a token that was just made cannot be completed", Test("a_wait_is_decided_by_what_the_replica_does_not_know_yet")),
    (35, "totals from a replica overwrite newer ones", Test("usage_is_added_to_what_is_stored")),
    (36, "a retry is decided by what a replica knows", Test("a_write_is_decided_by_what_the_replica_does_not_know_yet")),
    (37, "an expiry is dropped because a replica misses the run", Test("a_write_is_decided_by_what_the_replica_does_not_know_yet")),
    (38, "a fresh run cannot be changed", Test("a_fresh_run_is_changed_although_the_replica_does_not_know_it")),
    (39, "a wait that is tried again does not find its first try", Test("a_key_beside_a_run_is_looked_up_on_the_primary_whatever_is_asked")),
    (40, "a batch cannot be read by whoever has just made it", Test("a_batch_is_ended_by_what_the_replica_does_not_know_yet")),
    (41, "a snapshot that a replica misses is taken for missing", Test("a_known_snapshot_that_the_replica_misses_is_looked_for_twice_and_then_on_the_primary")),
    (42, "a worker's task is refused because a replica misses it", Test("the_primary_answers_whatever_replica_there_is")),
    (43, "a change is announced with a row of before", Type("Transition")),
    (44, "reads are sent to a replica wholesale", Type("Read")),
    (45, "a snapshot is seen without its links", Test("links_that_the_replica_misses_are_read_on_the_primary_and_repeated_places_are_no_miss")),
    (46, "repeated places are taken for missing links", Test("links_that_the_replica_misses_are_read_on_the_primary_and_repeated_places_are_no_miss")),
    (47, "a replica decides where a write goes", Test("a_wait_is_decided_by_what_the_replica_does_not_know_yet")),
    (48, "naming any connection at all asks the primary", Type("Read")),
    (49, "that something is missing is remembered from a replica", Test("a_fresh_environment_is_found_though_the_replica_does_not_have_it_yet")),
    (50, "no test has a replica that lags", Test("a_paused_standby_does_not_see_what_is_committed_until_it_goes_on")),
    // Half of it.
    (51, "a snapshot is committed without its links", Test("a_resume_that_is_cut_off_at_any_step_is_whole_or_nothing")),
    (52, "a pool is taken for a transaction", Type("Unit")),
    (53, "a run changes and its snapshot is missing", Test("a_unit_that_fails_in_the_middle_leaves_everything_as_it_was")),
    (54, "a transaction is thought to span both databases", Test("a_block_that_is_cut_off_at_any_step_is_made_up_for_by_its_repetition")),
    (55, "one insert needs an interactive transaction", Test("a_create_is_one_statement_and_one_round_trip_to_its_database")),
    (56, "a full pool looks like a server that is away", Test("a_pool_whose_connections_are_all_in_use_is_not_a_server_that_is_away")),
    (57, "what has run in part is run again", Test("a_transition_whose_connection_is_cut_knows_what_became_of_it_unless_it_was_committing")),
    (58, "snapshots are written that nobody can see", Test("a_run_that_succeeds_leaves_a_chain_of_snapshots")),
    (59, "a final status comes before what explains it", Test("a_run_of_the_old_engine_ends_with_its_error_at_once")),
    (60, "a deadline that was moved strikes at its old time", Test("a_parked_run_whose_date_has_not_come_waits_for_its_date_next")),
    (61, "a run goes on and its edges stay", Test("a_resume_that_is_cut_off_at_any_step_is_whole_or_nothing")),
    (62, "edges are written and counted in one statement", Test("a_completion_between_edge_and_mark_does_not_leave_the_run_asleep")),
    (63, "blocking again piles up edges", Test("blocking_again_changes_nothing_but_the_version_of_the_row")),
    // Twice.
    (64, "processes learn at different times where runs are made", Test("creators_with_wrong_clocks_and_stale_flags_make_one_run_while_the_kind_flips")),
    (65, "a change that is taken back at once leaves no defined kind", Test("only_a_genuine_change_is_stamped_and_with_the_kind_in_force")),
    (66, "kind and date of a change come from different places", Test("the_organization_then_the_global_flag_then_the_default_decide_each_with_its_own_stamp")),
    (67, "a global key makes a run in each database", Test("of_64_creates_from_both_databases_one_makes_the_run_and_all_others_learn_which")),
    (68, "a key that was cleared is used past the claim", Test("leases_that_are_far_too_short_and_cleared_keys_never_leave_two_live_runs")),
    (69, "a key without a scope is taken for a local one", Test("a_key_that_says_no_scope_is_global")),
    (70, "a key is cleared in one database only", Test("clearing_by_predicate_clears_every_database")),
    (71, "of two runs with a key one keeps it", Test("clearing_by_predicate_clears_every_database")),
    (72, "many keys are looked up by a scan", Test("each_key_is_looked_up_in_the_whole_unique_key")),
    (73, "one database's look-up is built with another's parts", Test("the_runs_of_many_keys_are_found_in_the_order_of_the_keys")),
    (74, "a NUL byte comes to light in the database", Test("a_text_that_cannot_be_stored_is_refused_before_any_statement_by_waitpoints_and_waits")),
    (75, "the length of a key is thought to say what it is", Test("a_key_is_cleared_as_it_is_whatever_it_looks_like")),
    (76, "a create that is repeated makes a second run", Test("a_create_that_is_repeated_finds_its_own_run")),
    (77, "two creates of one run end in a fault", Test("an_id_exists_once_and_the_first_run_stays_as_it_is")),
    (78, "members of a batch are made elsewhere than the batch", Test("the_runs_of_a_batch_stay_together_when_the_kind_flips_half_way")),
    (79, "a child is made elsewhere than its parent", Test("children_batches_and_their_items_follow_what_they_hang_on_and_ask_nobody")),
    // Too much.
    (80, "relations are read row by row", Test("six_relations_of_1000_runs_are_one_statement_for_each_level_and_database")),
    (81, "a popular token brings all of its runs", Test("a_popular_waitpoint_shows_five_of_its_runs_over_all_databases")),
    (82, "wide columns are read and thrown away", Test("only_the_columns_of_the_shape_are_read_and_any_shape_will_do")),
    (83, "one answer's change shows in another", Test("a_target_that_parents_share_is_an_own_value_for_each")),
    (84, "a list of waitpoints is resolved one by one", Test("each_thousand_keys_are_a_statement_and_the_answer_does_not_show_it")),
    (85, "edges bring whole outputs along", Type("WaitpointState")),
    (86, "each id of a list is a parameter", Test("ten_thousand_ids_are_ten_statements_and_no_ids_are_none")),
    (87, "a dequeue reads whole rows of workers", Elsewhere("resolver")),
    (88, "the newest worker is chosen by its id", Elsewhere("resolver")),
    (89, "batches are paged by id", Test("batches_are_listed_by_age_over_both_databases_and_not_by_id")),
    (90, "a page that one database can fill leaves out the other", Test("a_page_over_both_databases_is_the_page_of_one_database_with_the_same_rows")),
    (91, "merged lists lose order and limit", Test("a_page_over_both_databases_is_the_page_of_one_database_with_the_same_rows")),
    (92, "texts and nulls are ordered otherwise than the databases do", Test("text_is_ordered_bytewise_over_both_databases")),
    (93, "an index is in one database only", Test("what_both_databases_have_is_the_same_in_both")),
    (94, "a reference that acts on a delete has no index", Test("what_a_delete_looks_for_is_found_by_an_index")),
    (95, "only some relations cross the seam", Test("waitpoints_are_found_wherever_they_lie_and_left_out_where_they_are_nowhere")),
    (96, "a relation that a database lacks fails without a reason", Test("a_relation_to_the_control_plane_is_refused_before_any_statement_for_rows_elsewhere")),
    (97, "a stale copy hides the row", Test("of_two_copies_the_run_ops_one_counts_and_counts_once")),
    (98, "one merge prefers another copy than all others", Test("an_edge_that_both_databases_have_is_listed_once_as_run_ops_has_it")),
    (99, "a copy is counted as another waitpoint", Test("a_copy_in_both_databases_counts_once_and_run_ops_has_precedence")),
    // Errors.
    (100, "the two databases fail in different ways", Test("every_constraint_is_one_and_the_same_error_everywhere")),
    (101, "a used token is taken for another clash", Test("a_taken_idempotency_key_and_a_used_token_are_outcomes")),
    (102, "a message shows a host or a row", Test("what_the_server_says_of_a_row_is_not_passed_on")),
    (103, "a short outage looks like a wrong input", Test("what_the_server_refuses_for_the_moment_is_told_apart_and_changes_nothing")),
    (104, "a setting's value is printed", Test("a_configuration_does_not_show_its_values")),
    (105, "an edge to nothing counts as done", Test("a_waitpoint_that_is_nowhere_or_of_another_environment_does_not_count_as_done")),
    (106, "half a success is told as one, or as none", Test("a_completion_that_is_cut_off_at_any_step_is_made_up_for_by_its_repetition")),
    // Asleep for good.
    (107, "a batch that was never sealed is waited for", Test("an_aborted_batch_completes_its_waitpoint_with_the_error")),
    (108, "an end wakes nobody", Test("an_aborted_batch_completes_its_waitpoint_with_the_error")),
    (109, "a run expires that had been started, or waits in no queue", Test("a_run_that_must_not_expire_is_left_as_it_is_for_a_reason")),
    (110, "results are read through tables of one database", Test("results_come_in_item_order_and_leave_out_what_is_not_over")),
    (111, "those who try again do so in step", Test("waiting_creators_do_not_look_in_step")),
    // Ids.
    (112, "ids that differ in case become one name", Elsewhere("naming")),
    (113, "ids are ordered by a language's rules", Test("the_default_order_is_not_bytewise_and_the_order_of_ids_is")),
    (114, "ids of older forms are classified anew", Test("classification_looks_at_length_alphabet_and_upper_bound")),
    (115, "what looks like an id is decided in several places", Test("each_type_takes_its_own_form_and_no_other")),
    (116, "a third form finds no room", Type("Residency")),
    // Set-up.
    (117, "two addresses of one database pass for two databases", Test("two_addresses_of_one_database_are_no_split")),
    (118, "what a server cannot tell is asked for again and again", Test("a_role_that_may_not_ask_for_the_cluster_is_told_by_the_identity_alone")),
    (119, "a store routes between two handles of one database", Test("a_single_store_knows_no_second_database_and_costs_no_further_question")),
    (120, "pools are opened that nobody needs", Test("a_split_opens_each_database_once_to_ask_and_its_pools_when_they_are_used")),
    (121, "a misspelt setting has no effect", Test("parameters_of_an_address_have_an_effect_or_are_refused")),
    (122, "one database's limits bind the other", Type("DatabaseConfig")),
    (123, "something rests on the state of a session", Test("a_read_survives_the_end_of_its_backend_and_a_write_reports_it")),
    (124, "a database is not migrated, or with the other's migrations", Test("the_wrong_migrator_is_refused_and_changes_nothing")),
    (125, "two consumers wait for one lock", Elsewhere("replication")),
    (126, "replication goes through a pooler", Elsewhere("replication")),
    (127, "a mistake comes back with the next change", Check("fence")),
    (128, "a check passes because it looks at nothing", Test("the_run_ops_schema_has_everything_in_the_numbers_that_are_specified")),
    // The control plane's data.
    (129, "a run is locked to a version that was replaced", Test("what_decides_is_asked_each_time_and_a_promotion_is_seen_by_the_very_next_call")),
    (130, "a run of another tenant is read by its id", Test("a_snapshot_of_another_run_or_environment_is_not_found")),
    (131, "a worker of another tenant is read by its id", Test("a_worker_of_another_environment_is_nobody")),
    (132, "an invalidation is lost to a load under way", Test("an_invalidation_beats_a_load_whose_answer_is_on_its_way")),
    (133, "many load at once what has expired", Test("ten_thousand_readers_of_a_cold_key_make_one_load")),
    (134, "counters are kept for ever", Test("memory_is_bounded_with_a_million_keys")),
    (135, "two look-ups remember different things for one key", Test("many_versions_are_answered_as_each_by_itself_would_be")),
    (136, "a switch that cannot be read decides silently", Test("while_flags_cannot_be_read_runs_are_born_in_the_control_plane_and_that_is_counted")),
    (137, "rows name environments that do not exist", Test("what_nobody_has_made_is_nothing_to_every_question")),
    // Said, and not so.
    (138, "where a completion goes that could go either way", Test("a_completion_is_for_the_database_of_the_first_rule_that_fits")),
    (139, "which database a read of one run asks", Test("each_id_is_read_where_it_can_be_and_nowhere_else")),
    (140, "which database a list of ids asks", Test("runs_are_read_by_id_with_one_statement_for_each_database_that_has_ids")),
    (141, "which database a batch is looked for in", Test("a_batch_that_lies_elsewhere_than_its_id_says_is_found_changed_and_ended")),
];

const COUNT: u32 = 141;

/// All Rust files below `folder`.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("{} is no folder", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the tests are a member of a workspace").to_owned()
}

/// The name that a line declares after one of these words.
fn declared<'a>(line: &'a str, words: &[&str]) -> Option<&'a str> {
    let rest = words.iter().find_map(|word| {
        let at = line.find(word)?;
        let is_begin = at == 0 || line[..at].ends_with(' ');
        is_begin.then(|| &line[at + word.len()..])
    })?;
    let end = rest.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(rest.len());
    (end > 0).then(|| &rest[..end])
}

/// The names of all tests: functions below an attribute that makes them one, or in a block of `proptest!`.
fn tests_in(text: &str, into: &mut BTreeMap<String, usize>) {
    let mut is_marked = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" || line.starts_with("#[tokio::test") {
            is_marked = true;
        } else if let Some(name) = declared(line, &["fn "]).filter(|_| is_marked) {
            *into.entry(name.to_owned()).or_default() += 1;
            is_marked = false;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            is_marked = false;
        }
    }
}

#[test]
fn every_mistake_is_stopped_once_and_by_something_that_exists() -> Result<()> {
    let workspace = workspace();
    let mut tests = BTreeMap::new();
    for folder in ["tests/tests/it", "store/src", "migration"] {
        let files = sources(&workspace.join(folder))?;
        assert!(!files.is_empty(), "there is nothing in {folder}");
        for file in files {
            tests_in(&std::fs::read_to_string(&file)?, &mut tests);
        }
    }
    let mut types = BTreeSet::new();
    for file in sources(&workspace.join("store/src"))? {
        let text = std::fs::read_to_string(&file)?;
        let words = ["struct ", "enum ", "trait "];
        types.extend(text.lines().filter_map(|line| declared(line, &words)).map(str::to_owned));
    }
    assert!(
        tests.len() > 300 && types.len() > 100,
        "{} tests, {} types: look where they are",
        tests.len(),
        types.len()
    );

    let checks = std::fs::read_to_string(workspace.join(".ci/run"))?;

    let numbers: Vec<u32> = LESSONS.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=COUNT).collect::<Vec<_>>(), "each number once, in order");
    let mut stopped = 0;
    for (number, what, stop) in LESSONS {
        assert!(!what.is_empty(), "{number} says nothing");
        match stop {
            Test(name) => assert!(tests.contains_key(*name), "{number}, {what}: no test is called {name}"),
            Type(name) => assert!(types.contains(*name), "{number}, {what}: no type of the store is called {name}"),
            Check(name) => {
                let path = format!(".ci/{name}");
                assert!(workspace.join(&path).is_file(), "{number}, {what}: there is no {path}");
                assert!(checks.contains(&path), "{number}, {what}: {path} is carried out by nobody");
            }
            Elsewhere(part) => assert!(OTHERS.contains(part), "{number}, {what}: {part} is no part of a system"),
        }
        stopped += usize::from(!matches!(stop, Elsewhere(_)));
    }
    assert!(stopped > 100, "only {stopped} are stopped here");
    Ok(())
}

#[test]
fn tests_and_types_are_found_by_how_they_are_declared() {
    let mut tests = BTreeMap::new();
    let text =
        "#[tokio::test]\n// Slow.\nasync fn one() {}\nfn helper() {}\n#[test]\n#[ignore]\nfn two() {}\nfn three() {}\n";
    tests_in(text, &mut tests);
    assert_eq!(tests.keys().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(declared("pub struct Read<'a> {", &["struct "]), Some("Read"));
    assert_eq!(declared("pub(crate) enum Phase {", &["struct ", "enum "]), Some("Phase"));
    assert_eq!(declared("/// a constructor", &["struct "]), None);
}

#[test]
fn a_key_that_says_no_scope_is_global() {
    assert_eq!(Idempotency::new("key").scope, KeyScope::Global);
    assert_eq!(KeyScope::default(), KeyScope::Global);
}
