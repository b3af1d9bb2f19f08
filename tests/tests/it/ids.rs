//! Every rule about ids: which texts are ids, of which kind, and what they tell about the database.
//!
//! Properties are tried on some hundred texts; `PROPTEST_CASES=1000000` tries more.

use std::{collections::HashSet, error::Error, fmt::Debug, fmt::Display, marker::PhantomData, str::FromStr};

use chrono::{DateTime, TimeDelta, Utc};
use ksuid::KsuidLike;
use proptest::prelude::*;
use store::{
    BatchFriendlyId, BatchId, EnvironmentId, Home, IdFault, KsuidError, OrganizationId, ProjectId, QueueId, Residency,
    Routable, Route, RunFriendlyId, RunId, RunKey, SnapshotId, UnclassifiableId, UnroutedRunFriendlyId, WaitpointId,
    WorkerId, WorkerTaskId, classify, is_classifiable,
};

const CUID: &str = "cjld2cjxh0000qzrmn831i7rn";
const KSUID: &str = "2ZrQ4XkO3nM8vT1yWc5uJd7LpBs";
const GREATEST_KSUID: &str = "aWgEPTl1tmebfsQzFP4bxwgy80V";
const OLDEST: &str = "5gk8h2qzr1mn83wi7rnxy";

/// What is said about a text that is refused: why, and how many bytes its body has.
type Refusal = (IdFault, usize);

fn refusal(error: &UnclassifiableId) -> Refusal {
    (error.fault(), error.body_length())
}

#[test]
fn classification_looks_at_length_alphabet_and_upper_bound() {
    use IdFault::{Alphabet, Empty, Length, OutOfRange};
    use Residency::{ControlPlane, RunOps};

    let of = |length: usize| "c".repeat(length);
    let cases: Vec<(&str, String, Result<Residency, Refusal>)> = vec![
        // Length.
        ("nothing", String::new(), Err((Empty, 0))),
        ("a prefix alone", "run_".into(), Err((Empty, 0))),
        ("one character", "c".into(), Err((Length, 1))),
        ("21 characters", of(21), Err((Length, 21))),
        ("24 characters", of(24), Err((Length, 24))),
        ("25 characters", of(25), Ok(ControlPlane)),
        ("26 characters", of(26), Err((Length, 26))),
        ("27 characters", of(27), Err((OutOfRange, 27))),
        ("28 characters", of(28), Err((Length, 28))),
        ("40 characters", of(40), Err((Length, 40))),
        ("a UUID", "0190c5a1-6f3e-7cc2-9d0a-3b8f2a1c4d5e".into(), Err((Length, 36))),
        ("very long", of(1 << 20), Err((Length, 1 << 20))),
        // Cuids.
        ("a cuid", CUID.into(), Ok(ControlPlane)),
        ("a friendly cuid", format!("run_{CUID}"), Ok(ControlPlane)),
        ("a cuid of nines", format!("c{}", "9".repeat(24)), Ok(ControlPlane)),
        ("a cuid with a wrong first letter", CUID.replacen('c', "d", 1), Err((Alphabet, 25))),
        ("a cuid that begins with a digit", CUID.replacen('c', "0", 1), Err((Alphabet, 25))),
        ("a cuid with a great first letter", CUID.replacen('c', "C", 1), Err((Alphabet, 25))),
        ("a cuid in upper case", CUID.to_uppercase(), Err((Alphabet, 25))),
        ("a cuid with one great letter at its end", format!("{}N", &CUID[..24]), Err((Alphabet, 25))),
        ("a cuid with a hyphen", CUID.replacen('h', "-", 1), Err((Alphabet, 25))),
        // KSUIDs.
        ("a KSUID", KSUID.into(), Ok(RunOps)),
        ("a friendly KSUID", format!("run_{KSUID}"), Ok(RunOps)),
        ("a friendly KSUID of a batch", format!("batch_{KSUID}"), Ok(RunOps)),
        ("the smallest KSUID", "0".repeat(27), Ok(RunOps)),
        ("the greatest KSUID", GREATEST_KSUID.into(), Ok(RunOps)),
        ("one before the greatest KSUID", "aWgEPTl1tmebfsQzFP4bxwgy80U".into(), Ok(RunOps)),
        ("one too much in the last place", "aWgEPTl1tmebfsQzFP4bxwgy80W".into(), Err((OutOfRange, 27))),
        ("one too much in the second place", "aXgEPTl1tmebfsQzFP4bxwgy80V".into(), Err((OutOfRange, 27))),
        ("one too much in the first place", "bWgEPTl1tmebfsQzFP4bxwgy80V".into(), Err((OutOfRange, 27))),
        (
            "a small letter first, which is greater than all great ones",
            "b".to_owned() + &"0".repeat(26),
            Err((OutOfRange, 27)),
        ),
        ("great letters and digits stay below the bound", "Z".repeat(27), Ok(RunOps)),
        ("the greatest text", "z".repeat(27), Err((OutOfRange, 27))),
        ("a KSUID with a hyphen", KSUID.replacen('Z', "-", 1), Err((Alphabet, 27))),
        ("a KSUID with a plus sign at its end", format!("{}+", &KSUID[..26]), Err((Alphabet, 27))),
        // The alphabet counts before the bound: such a text is no number at all.
        ("neither in the alphabet nor in the range", "~".repeat(27), Err((Alphabet, 27))),
        // Underscores: the body begins after the first.
        ("any prefix", format!("anything at all_{KSUID}"), Ok(RunOps)),
        ("an empty prefix", format!("_{CUID}"), Ok(ControlPlane)),
        ("two prefixes", format!("run_batch_{CUID}"), Err((Length, 31))),
        ("two underscores", format!("run__{CUID}"), Err((Length, 26))),
        ("an underscore at the end", format!("{CUID}_"), Err((Empty, 0))),
        ("an underscore in the middle of 25", "run_ccccc_ccccccccccccccccccc".into(), Err((Alphabet, 25))),
        ("an underscore in the middle of 27", "run_1234567_1234567890123456789".into(), Err((Alphabet, 27))),
        // Bytes, not characters.
        ("25 bytes beyond ASCII", format!("c{}", "é".repeat(12)), Err((Alphabet, 25))),
        ("25 characters beyond ASCII", format!("c{}", "é".repeat(24)), Err((Length, 49))),
        ("27 bytes beyond ASCII", format!("1{}", "é".repeat(13)), Err((Alphabet, 27))),
        ("27 bytes in wide characters", "数".repeat(9), Err((Alphabet, 27))),
        ("27 characters beyond ASCII", "数".repeat(27), Err((Length, 81))),
        ("full-width digits", "２".repeat(9), Err((Alphabet, 27))),
        ("a prefix beyond ASCII", format!("läufe_{CUID}"), Ok(ControlPlane)),
        // Blanks and control characters are never cut off.
        ("a blank before", format!(" {CUID}"), Err((Length, 26))),
        ("a line break after", format!("{CUID}\n"), Err((Length, 26))),
        ("a blank inside", format!("{} {}", &CUID[..12], &CUID[13..]), Err((Alphabet, 25))),
        ("a blank in place of the last of 27", format!("{} ", &KSUID[..26]), Err((Alphabet, 27))),
        ("a blank after the prefix", format!("run_ {CUID}"), Err((Length, 26))),
        ("a NUL inside", format!("{}\0{}", &CUID[..12], &CUID[13..]), Err((Alphabet, 25))),
        ("a NUL at the end of 27", format!("{}\0", &KSUID[..26]), Err((Alphabet, 27))),
        ("a NUL after", format!("{KSUID}\0"), Err((Length, 28))),
    ];
    for (name, text, expected) in cases {
        let found = classify(&text).map_err(|error| refusal(&error));
        assert_eq!(found, expected, "{name}");
        assert_eq!(is_classifiable(&text), expected.is_ok(), "{name}");
    }
}

/// Which of the types take a text.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    run: Result<(), IdFault>,
    run_friendly: Result<(), IdFault>,
    batch: Result<(), IdFault>,
    batch_friendly: Result<(), IdFault>,
    oldest: Result<(), IdFault>,
    key: Result<&'static str, IdFault>,
}

fn taken(text: &str) -> Taken {
    fn of<T: FromStr<Err = UnclassifiableId>>(text: &str) -> Result<(), IdFault> {
        text.parse::<T>().map(drop).map_err(|error| error.fault())
    }
    let key = text.parse().map(|key| match key {
        RunKey::Id(_) => "id",
        RunKey::Friendly(_) => "friendly",
        RunKey::Unrouted(_) => "unrouted",
    });
    Taken {
        run: of::<RunId>(text),
        run_friendly: of::<RunFriendlyId>(text),
        batch: of::<BatchId>(text),
        batch_friendly: of::<BatchFriendlyId>(text),
        oldest: of::<UnroutedRunFriendlyId>(text),
        key: key.map_err(|error: UnclassifiableId| error.fault()),
    }
}

#[test]
fn each_type_takes_its_own_form_and_no_other() {
    use IdFault::{Alphabet, Empty, Length, OutOfRange, Prefix, Unrouted};

    let (yes, prefix) = (Ok(()), Err(Prefix));
    let none = |fault| Taken {
        run: Err(fault),
        run_friendly: prefix,
        batch: Err(fault),
        batch_friendly: prefix,
        oldest: prefix,
        key: Err(fault),
    };
    let plain =
        || Taken { run: yes, run_friendly: prefix, batch: yes, batch_friendly: prefix, oldest: prefix, key: Ok("id") };
    let run = |friendly, oldest, key| Taken {
        run: prefix,
        run_friendly: friendly,
        batch: prefix,
        batch_friendly: prefix,
        oldest,
        key,
    };
    let batch = |friendly| Taken {
        run: prefix,
        run_friendly: prefix,
        batch: prefix,
        batch_friendly: friendly,
        oldest: prefix,
        key: prefix.map(|()| ""),
    };
    let bad = |fault| run(Err(fault), Err(Length), Err(fault));

    let cases: Vec<(&str, String, Taken)> = vec![
        ("a plain cuid", CUID.into(), plain()),
        ("a plain KSUID", KSUID.into(), plain()),
        ("a friendly cuid", format!("run_{CUID}"), run(yes, Err(Length), Ok("friendly"))),
        ("a friendly KSUID", format!("run_{KSUID}"), run(yes, Err(Length), Ok("friendly"))),
        ("the oldest form", format!("run_{OLDEST}"), run(Err(Unrouted), yes, Ok("unrouted"))),
        ("a batch's cuid", format!("batch_{CUID}"), batch(yes)),
        ("a batch's KSUID", format!("batch_{KSUID}"), batch(yes)),
        // Only runs had the oldest form, but nobody who has one in hand can tell where its batch is.
        ("a batch in the oldest form", format!("batch_{OLDEST}"), batch(Err(Unrouted))),
        ("a waitpoint's", format!("waitpoint_{CUID}"), run(prefix, prefix, prefix.map(|()| ""))),
        ("a prefix in upper case", format!("RUN_{CUID}"), run(prefix, prefix, prefix.map(|()| ""))),
        ("a prefix with a blank", format!(" run_{CUID}"), run(prefix, prefix, prefix.map(|()| ""))),
        ("an empty prefix", format!("_{CUID}"), run(prefix, prefix, prefix.map(|()| ""))),
        ("a prefix without its underscore", format!("run{CUID}"), none(Length)),
        ("the oldest form without its prefix", OLDEST.into(), none(Length)),
        ("nothing", String::new(), none(Empty)),
        ("one more than the greatest KSUID", "aWgEPTl1tmebfsQzFP4bxwgy80W".into(), none(OutOfRange)),
        ("a cuid in upper case", CUID.to_uppercase(), none(Alphabet)),
        ("a run's prefix alone", "run_".into(), bad(Empty)),
        ("a run's prefix twice", format!("run_run_{CUID}"), bad(Length)),
        ("a run's, one more than the greatest KSUID", "run_aWgEPTl1tmebfsQzFP4bxwgy80W".into(), bad(OutOfRange)),
        ("a run's cuid in upper case", format!("run_{}", CUID.to_uppercase()), bad(Alphabet)),
        (
            "the oldest form with a hyphen",
            format!("run_{}-", &OLDEST[..20]),
            run(Err(Length), Err(Alphabet), Err(Length)),
        ),
        ("a run's with 20 characters", format!("run_{}", &OLDEST[..20]), bad(Length)),
        ("a run's with 22 characters", format!("run_{OLDEST}a"), bad(Length)),
        ("21 bytes beyond ASCII", format!("run_{}", "数".repeat(7)), run(Err(Length), Err(Alphabet), Err(Length))),
    ];
    for (name, text, expected) in cases {
        assert_eq!(taken(&text), expected, "{name}");
    }
}

#[test]
fn a_key_tells_the_home_of_its_run_or_that_it_cannot() {
    let cases = [
        (CUID.to_owned(), Home::Routed(Residency::ControlPlane)),
        (KSUID.to_owned(), Home::Routed(Residency::RunOps)),
        (format!("run_{CUID}"), Home::Routed(Residency::ControlPlane)),
        (format!("run_{KSUID}"), Home::Routed(Residency::RunOps)),
        (format!("run_{OLDEST}"), Home::Unrouted),
    ];
    for (text, expected) in cases {
        let key: RunKey = text.parse().expect("a form that reads take");
        assert_eq!(key.home(), expected, "{text}");
    }
}

/// Finds out whether a type is [`Routable`]: the inherent constant exists for types that are, and then it counts.
struct Ask<T>(PhantomData<T>);

trait Otherwise {
    const ROUTABLE: bool = false;
}

impl<T> Otherwise for Ask<T> {}

impl<T: Routable> Ask<T> {
    const ROUTABLE: bool = true;
}

#[test]
fn only_run_and_batch_ids_route() {
    let cases = [
        ("RunId", Ask::<RunId>::ROUTABLE, true),
        ("RunFriendlyId", Ask::<RunFriendlyId>::ROUTABLE, true),
        ("BatchId", Ask::<BatchId>::ROUTABLE, true),
        ("BatchFriendlyId", Ask::<BatchFriendlyId>::ROUTABLE, true),
        ("UnroutedRunFriendlyId", Ask::<UnroutedRunFriendlyId>::ROUTABLE, false),
        ("RunKey", Ask::<RunKey>::ROUTABLE, false),
        ("SnapshotId", Ask::<SnapshotId>::ROUTABLE, false),
        ("WaitpointId", Ask::<WaitpointId>::ROUTABLE, false),
        ("EnvironmentId", Ask::<EnvironmentId>::ROUTABLE, false),
        ("ProjectId", Ask::<ProjectId>::ROUTABLE, false),
        ("OrganizationId", Ask::<OrganizationId>::ROUTABLE, false),
        ("WorkerId", Ask::<WorkerId>::ROUTABLE, false),
        ("WorkerTaskId", Ask::<WorkerTaskId>::ROUTABLE, false),
        ("QueueId", Ask::<QueueId>::ROUTABLE, false),
        ("String", Ask::<String>::ROUTABLE, false),
    ];
    for (name, found, expected) in cases {
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn ids_that_are_only_names_take_short_visible_ascii() {
    let cases = [
        ("a cuid", CUID.to_owned(), Ok(())),
        ("a KSUID", KSUID.to_owned(), Ok(())),
        ("a UUID", "0190c5a1-6f3e-7cc2-9d0a-3b8f2a1c4d5e".to_owned(), Ok(())),
        ("one character", "~".to_owned(), Ok(())),
        ("64 characters", "x".repeat(64), Ok(())),
        ("nothing", String::new(), Err((IdFault::Empty, 0))),
        ("65 characters", "x".repeat(65), Err((IdFault::Length, 65))),
        ("very long", "x".repeat(1 << 20), Err((IdFault::Length, 1 << 20))),
        ("a blank", "a b".to_owned(), Err((IdFault::Alphabet, 3))),
        ("a NUL", "a\0".to_owned(), Err((IdFault::Alphabet, 2))),
        ("beyond ASCII", "é".to_owned(), Err((IdFault::Alphabet, 2))),
    ];
    for (name, text, expected) in cases {
        let parsed = text.parse::<SnapshotId>();
        assert_eq!(parsed.as_ref().map(drop).map_err(refusal), expected, "{name}");
        let owned = SnapshotId::try_from(text.clone());
        assert_eq!(owned, parsed, "{name}");
        if let Ok(id) = parsed {
            assert_eq!((id.as_str(), id.to_string()), (text.as_str(), text.clone()), "{name}");
        }
    }
}

#[test]
fn a_refused_text_is_kept_to_128_bytes_cut_between_characters() {
    let cases = [
        ("short", "no id".to_owned(), 5),
        ("128 bytes", "x".repeat(128), 128),
        ("129 bytes", "x".repeat(129), 128),
        ("very long", "x".repeat(1 << 20), 128),
        ("wide characters", "数".repeat(1_000), 126),
    ];
    for (name, text, kept) in cases {
        let errors = [
            classify(&text).expect_err(name),
            text.parse::<RunId>().expect_err(name),
            text.parse::<RunFriendlyId>().expect_err(name),
            text.parse::<RunKey>().expect_err(name),
        ];
        for error in errors {
            assert_eq!(error.text(), &text[..kept], "{name}");
            assert_eq!(error.body_length(), text.len(), "{name}");
        }
    }
}

#[test]
fn a_refusal_says_why_and_does_not_repeat_the_text() {
    let error = "run_sécret".parse::<RunFriendlyId>().expect_err("the body is too short");
    insta::assert_snapshot!(error, @"not a usable id (7 bytes after the prefix): no kind of id has that length");
    insta::assert_debug_snapshot!(error, @r"
    UnclassifiableId {
        body_length: 7,
        fault: Length,
        ..
    }
    ");
    assert!(error.source().is_none());
}

#[test]
fn a_minted_id_and_its_friendly_form_live_where_they_were_minted_for() {
    /// Checks that `id` and `friendly` read back from their texts, are classified alike, and are one another's.
    #[track_caller]
    fn check<I, F>(id: I, friendly: F, residency: Residency, id_of: impl Fn(&F) -> I, prefix: &str)
    where
        I: Routable + FromStr<Err = UnclassifiableId> + Display + Debug + PartialEq,
        F: Routable + FromStr<Err = UnclassifiableId> + Display + Debug + PartialEq,
    {
        assert_eq!(friendly.to_string(), format!("{prefix}_{id}"));
        assert_eq!(classify(&id.to_string()), Ok(residency), "{id}");
        assert_eq!(classify(&friendly.to_string()), Ok(residency), "{friendly}");
        assert_eq!((id.residency(), friendly.residency()), (residency, residency), "{id}");
        assert_eq!((Route::of(&id), Route::of(&friendly)), (Route::Owner(residency), Route::Owner(residency)));
        assert_eq!(id.to_string().parse().as_ref(), Ok(&id));
        assert_eq!(friendly.to_string().parse().as_ref(), Ok(&friendly));
        assert_eq!(id_of(&friendly), id);
    }

    for residency in Residency::ALL {
        let run = RunId::mint(residency);
        check(run, run.friendly(), residency, RunFriendlyId::id, "run");
        let batch = BatchId::mint(residency);
        check(batch, batch.friendly(), residency, BatchFriendlyId::id, "batch");
    }
}

#[test]
fn fifty_thousand_mints_are_distinct_and_each_lives_where_it_was_minted_for() {
    let mut seen = HashSet::new();
    for number in 0..50_000 {
        let residency = Residency::ALL[number % 2];
        let id = RunId::mint(residency);
        assert_eq!(classify(id.as_str()), Ok(residency), "{id}");
        assert_eq!(classify(&id.friendly().to_string()), Ok(residency), "{id}");
        assert!(seen.insert(id), "{id} was minted twice");
    }
}

#[test]
fn ids_minted_for_rows_that_do_not_route_look_like_the_control_planes() {
    for text in [SnapshotId::mint().to_string(), WaitpointId::mint().to_string()] {
        assert_eq!(classify(&text), Ok(Residency::ControlPlane), "{text}");
    }
    let waitpoint = WaitpointId::mint();
    assert_eq!(waitpoint.friendly(), format!("waitpoint_{waitpoint}"));
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).expect("chrono tells these seconds")
}

/// Unix time of a KSUID's second zero.
const EPOCH: i64 = 1_400_000_000;

#[test]
fn a_ksuid_is_its_second_big_endian_and_its_payload() {
    let cases: [(&str, u32, &[u8]); 5] = [
        ("no payload", 107_608_047, b""),
        ("some payload", 0x0102_0304, b"abc"),
        ("all payload", 107_608_047, b"0123456789abcdef"),
        ("the first second, no bits set", 0, &[0; 16]),
        ("the last second, all bits set", u32::MAX, &[0xff; 16]),
    ];
    for (name, second, payload) in cases {
        let id = RunId::mint_run_ops_at(at(EPOCH + i64::from(second)), payload).expect(name);
        // The library's decoder is the judge, and then one written from the rules.
        let decoded = ksuid::Ksuid::from_base62(id.as_str()).expect(name);
        assert_eq!(decoded.timestamp_raw(), second, "{name}");
        assert!(decoded.payload().starts_with(payload), "{name}: {:?}", decoded.payload());
        let bytes = decode(id.as_str()).expect(name);
        assert_eq!(bytes[..4], second.to_be_bytes(), "{name}");
        assert!(bytes[4..].starts_with(payload), "{name}: {bytes:?}");
        assert_eq!(id.residency(), Residency::RunOps, "{name}");
    }
    let smallest = RunId::mint_run_ops_at(at(EPOCH), &[0; 16]).expect("the first second");
    assert_eq!(smallest.as_str(), "0".repeat(27), "padded on the left");
    let greatest = RunId::mint_run_ops_at(at(EPOCH + i64::from(u32::MAX)), &[0xff; 16]).expect("the last second");
    assert_eq!(greatest.as_str(), GREATEST_KSUID);
    // The example of the format's own documentation.
    let known = [0xB5, 0xA1, 0xCD, 0x34, 0xB5, 0xF9, 0x9D, 0x11, 0x54, 0xFB, 0x68, 0x53, 0x34, 0x5C, 0x97, 0x35];
    let id = BatchId::mint_run_ops_at(at(EPOCH + 107_608_047), &known).expect("a known KSUID");
    assert_eq!(id.as_str(), "0ujtsYcgvSTl8PAuAdqWYSMnLOv");
}

#[test]
fn the_rest_of_a_payload_is_random() {
    let moment = at(EPOCH + 1);
    let [one, other] = [(); 2].map(|()| RunId::mint_run_ops_at(moment, b"tag").expect("a short payload"));
    assert_ne!(one, other);
    let [one, other] = [(); 2].map(|()| RunId::mint_run_ops_at(moment, &[7; 16]).expect("a whole payload"));
    assert_eq!(one, other);
}

#[test]
fn a_ksuid_of_too_much_payload_or_of_a_moment_out_of_range_is_refused() {
    let last = EPOCH + i64::from(u32::MAX);
    let half = TimeDelta::milliseconds(500);
    let cases = [
        ("16 bytes", at(EPOCH), 16, Ok(())),
        ("17 bytes", at(EPOCH), 17, Err(KsuidError::PayloadTooLong(17))),
        ("a megabyte", at(EPOCH), 1 << 20, Err(KsuidError::PayloadTooLong(1 << 20))),
        ("the first second", at(EPOCH), 0, Ok(())),
        ("half a second before", at(EPOCH) - half, 0, Err(KsuidError::OutOfRange)),
        ("a second before", at(EPOCH - 1), 0, Err(KsuidError::OutOfRange)),
        ("the beginning of Unix", at(0), 0, Err(KsuidError::OutOfRange)),
        ("the last second", at(last), 0, Ok(())),
        ("the end of the last second", at(last) + half, 0, Ok(())),
        ("a second after", at(last + 1), 0, Err(KsuidError::OutOfRange)),
        ("the beginning of time", DateTime::<Utc>::MIN_UTC, 0, Err(KsuidError::OutOfRange)),
        ("the end of time", DateTime::<Utc>::MAX_UTC, 0, Err(KsuidError::OutOfRange)),
    ];
    for (name, moment, payload, expected) in cases {
        assert_eq!(RunId::mint_run_ops_at(moment, &vec![0; payload]).map(drop), expected, "{name}");
        assert_eq!(BatchId::mint_run_ops_at(moment, &vec![0; payload]).map(drop), expected, "{name}");
    }
}

#[test]
fn ids_of_later_seconds_sort_later() {
    // The greatest payload of one second and the smallest of the next; 61 and 62 are a carry in base 62.
    for second in [0, 1, 61, 62, 107_608_047, i64::from(u32::MAX) - 1] {
        let earlier = RunId::mint_run_ops_at(at(EPOCH + second), &[0xff; 16]).expect("in range");
        let later = RunId::mint_run_ops_at(at(EPOCH + second + 1), &[0; 16]).expect("in range");
        assert!(earlier < later, "{earlier} of second {second}, {later} of the next");
    }
}

#[test]
fn a_thousand_ids_of_one_second_are_distinct() {
    let moment = at(EPOCH + 107_608_047);
    let ids: HashSet<RunId> =
        (0..1_000).map(|_| RunId::mint_run_ops_at(moment, &[]).expect("an empty payload")).collect();
    assert_eq!(ids.len(), 1_000);
    let seconds: HashSet<u32> =
        ids.iter().map(|id| ksuid::Ksuid::from_base62(id.as_str()).expect("a minted KSUID").timestamp_raw()).collect();
    assert_eq!(seconds, HashSet::from([107_608_047]));
}

#[test]
fn a_minted_ksuid_is_of_the_present() {
    let before = Utc::now().timestamp();
    let id = RunId::mint(Residency::RunOps);
    let after = Utc::now().timestamp();
    let second = EPOCH + i64::from(ksuid::Ksuid::from_base62(id.as_str()).expect("a minted KSUID").timestamp_raw());
    assert!((before..=after).contains(&second), "{second} is not in {before}..={after}");
}

/// The residency of `text`, as the rules say it, with nothing of the store's.
fn by_the_rules(text: &str) -> Option<Residency> {
    let body: Vec<char> = match text.find('_') {
        Some(first) => text[first + 1..].chars().collect(),
        None => text.chars().collect(),
    };
    let is_cuid = body.len() == 25
        && body[0] == 'c'
        && body.iter().all(|character| "0123456789abcdefghijklmnopqrstuvwxyz".contains(*character));
    let body: String = body.into_iter().collect();
    match (is_cuid, decode(&body)) {
        (true, _) => Some(Residency::ControlPlane),
        (false, Some(_)) => Some(Residency::RunOps),
        (false, None) => None,
    }
}

/// The 20 bytes of a KSUID; `None` for a text that is none. Long multiplication, digit by digit.
fn decode(text: &str) -> Option<[u8; 20]> {
    const DIGITS: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    if text.chars().count() != 27 {
        return None;
    }
    let mut number = [0_u8; 20];
    for character in text.chars() {
        let mut carry = DIGITS.find(character)?;
        for byte in number.iter_mut().rev() {
            carry += usize::from(*byte) * 62;
            *byte = (carry & 0xff) as u8;
            carry >>= 8;
        }
        if carry > 0 {
            return None;
        }
    }
    Some(number)
}

/// Texts of every sort, many of them nearly ids.
fn texts() -> impl Strategy<Value = String> {
    let prefix = prop_oneof![
        4 => Just(""),
        3 => Just("run_"),
        1 => Just("batch_"),
        1 => Just("waitpoint_"),
        1 => Just("_"),
        1 => Just("run__"),
        1 => Just("é_"),
    ];
    let body = prop_oneof![
        any::<String>(),
        // Minted and borderline.
        "c[0-9a-z]{24}",
        "[0-9A-Za-z]{27}",
        "aWgEPTl1tmebfsQzFP4bxwgy[789][0-9A-Za-z]{2}",
        "[0-9A-Za-z]{20,28}",
        // One character wrong.
        "[bcdC][0-9a-z]{0,24}[0-9a-zA-Z_ \u{0}é-][0-9a-z]{0,24}",
        "[0-9A-Za-z]{13}[^0-9A-Za-z][0-9A-Za-z]{11,13}",
        "[ -~]{24,28}",
    ];
    (prefix, body).prop_map(|(prefix, body)| format!("{prefix}{body}"))
}

/// A text of which every kind of change to the greatest KSUID is likely.
fn near_the_bound() -> impl Strategy<Value = String> {
    (0..27_usize, "[0-9A-Za-z]").prop_map(|(place, digit)| {
        let mut text = GREATEST_KSUID.to_owned();
        text.replace_range(place..=place, &digit);
        text
    })
}

/// Checks that parsing and showing lead back to `text`, for a type that takes it.
fn check_round_trip<T: FromStr<Err = UnclassifiableId> + Display>(text: &str) -> Result<bool, TestCaseError> {
    match text.parse::<T>() {
        Ok(id) => {
            prop_assert_eq!(id.to_string(), text);
            Ok(true)
        }
        Err(_) => Ok(false),
    }
}

proptest! {
    #[test]
    fn classification_is_total_and_agrees_with_the_rules(text in prop_oneof![4 => texts(), 1 => near_the_bound()]) {
        let found = classify(&text);
        prop_assert_eq!(found.as_ref().ok().copied(), by_the_rules(&text));
        prop_assert_eq!(is_classifiable(&text), found.is_ok());
        // One length for each kind: no text is of both.
        let body = text.split_once('_').map_or(text.as_str(), |(_, body)| body);
        match found {
            Ok(Residency::ControlPlane) => prop_assert_eq!(body.len(), 25),
            Ok(Residency::RunOps) => prop_assert_eq!(body.len(), 27),
            Err(error) => prop_assert_eq!(error.body_length(), body.len()),
        }
    }

    #[test]
    fn what_a_type_takes_it_shows_unchanged_and_classifies_alike(text in texts()) {
        let plain = check_round_trip::<RunId>(&text)?;
        let friendly = check_round_trip::<RunFriendlyId>(&text)?;
        let oldest = check_round_trip::<UnroutedRunFriendlyId>(&text)?;
        prop_assert_eq!(check_round_trip::<BatchId>(&text)?, plain);
        let batch = check_round_trip::<BatchFriendlyId>(&text)?;
        check_round_trip::<SnapshotId>(&text)?;
        // One text is one form at most, and a key takes any form of a run's.
        prop_assert!([plain, friendly, oldest, batch].iter().filter(|taken| **taken).count() <= 1);
        prop_assert_eq!(text.parse::<RunKey>().is_ok(), plain || friendly || oldest);

        let home = text.parse::<RunKey>().ok().map(|key| key.home());
        let classified = classify(&text).ok();
        match home {
            Some(Home::Routed(residency)) => prop_assert_eq!(classified, Some(residency)),
            Some(Home::Unrouted) => prop_assert_eq!(classified, None),
            None => prop_assert!(!(plain || friendly)),
        }
    }

    #[test]
    fn ids_sort_as_their_bytes_do(
        one in "[0-9A-Z][0-9A-Za-z]{26}|c[0-9a-z]{24}",
        other in "[0-9A-Z][0-9A-Za-z]{26}|c[0-9a-z]{24}",
    ) {
        let id = |text: &str| text.parse::<RunId>().expect("a cuid or a KSUID");
        let bytewise = one.as_bytes().cmp(other.as_bytes());
        prop_assert_eq!(id(&one).cmp(&id(&other)), bytewise);
        prop_assert_eq!(id(&one).friendly().cmp(&id(&other).friendly()), bytewise);
    }

    #[test]
    fn the_order_of_ksuids_is_that_of_their_bytes(one in any::<[u8; 20]>(), other in any::<[u8; 20]>()) {
        let id = |bytes: [u8; 20]| {
            let second = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            RunId::mint_run_ops_at(at(EPOCH + i64::from(second)), &bytes[4..]).expect("any 20 bytes are a KSUID")
        };
        let (first, second) = (id(one), id(other));
        prop_assert_eq!(decode(first.as_str()), Some(one));
        prop_assert_eq!(first.cmp(&second), one.cmp(&other));
    }
}
