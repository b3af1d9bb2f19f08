//! To tell where a call goes allocates nothing.
//!
//! A binary of its own, because a counting allocator serves a whole binary: the other tests keep the system's. It counts
//! for each thread apart, so tests side by side do not disturb each other.

use std::{hint::black_box, str::FromStr};

use allocation_counter::measure;
use store::{Residency, Route, RunFriendlyId, RunId, RunKey, UnroutedRunFriendlyId, classify, is_classifiable};

/// Checks that `work` on `text` allocates nothing.
#[track_caller]
fn check_free<T>(what: &str, text: &str, work: impl Fn(&str) -> T) {
    let seen = measure(|| {
        black_box(work(black_box(text)));
    });
    assert_eq!(seen.count_total, 0, "{what} of {text:?} allocated {} bytes", seen.bytes_total);
}

#[test]
fn the_counter_counts() {
    let seen = measure(|| {
        black_box(Vec::<u8>::with_capacity(black_box(100)));
    });
    assert_eq!((seen.count_total, seen.bytes_total), (1, 100));
}

#[test]
fn classifying_and_routing_allocate_nothing() {
    for residency in Residency::ALL {
        let id = RunId::mint(residency);
        let (plain, friendly) = (id.to_string(), id.friendly().to_string());

        for text in [&plain, &friendly] {
            check_free("classify", text, classify);
            check_free("is_classifiable", text, is_classifiable);
            check_free("RunKey", text, |text| RunKey::from_str(text).map(|key| key.home()));
        }
        check_free("RunId", &plain, |text| RunId::from_str(text).map(|id| Route::of(&id)));
        check_free("RunFriendlyId", &friendly, |text| {
            RunFriendlyId::from_str(text).map(|friendly| (Route::of(&friendly), friendly.id().friendly()))
        });
    }
    let oldest = "run_abcdefghijk0123456789";
    check_free("RunKey", oldest, |text| RunKey::from_str(text).map(|key| key.home()));
    check_free("UnroutedRunFriendlyId", oldest, UnroutedRunFriendlyId::from_str);
    check_free("is_classifiable", &"x".repeat(1 << 20), is_classifiable);
}

#[test]
fn a_text_that_is_refused_is_not_copied_whole() {
    let long = "x".repeat(1 << 20);
    for (what, refuse) in [
        ("classify", (|text| classify(text).is_err()) as fn(&str) -> bool),
        ("RunId", |text| RunId::from_str(text).is_err()),
        ("RunFriendlyId", |text| RunFriendlyId::from_str(text).is_err()),
        ("RunKey", |text| RunKey::from_str(text).is_err()),
    ] {
        let seen = measure(|| assert!(black_box(refuse(black_box(&long)))));
        assert!(seen.bytes_total <= 128, "{what} kept {} bytes of a text that is no id", seen.bytes_total);
    }
}
