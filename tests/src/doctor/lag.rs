//! How far a replica is behind its primary.

use std::time::Duration;

use super::report::{Finding, Verdict};

/// How long a replica has to get to where its primary was. One that works takes a moment.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What a replica says about its replay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Replay {
    /// How far it has come, in bytes; unknown before it has replayed anything.
    pub(super) position: Option<i64>,
    pub(super) is_paused: bool,
    /// Whether it is connected to a server that sends it changes.
    pub(super) is_streaming: bool,
    /// Seconds since the newest commit that it shows, by its own clock.
    pub(super) age: Option<f64>,
}

impl Replay {
    /// Whether it has come to where its primary was.
    pub(super) fn has_reached(&self, primary: i64) -> bool {
        self.position.is_some_and(|position| position >= primary)
    }
}

/// Judges a replica that had [`PATIENCE`] to get to where its primary was, in bytes.
pub(super) fn judge(about: &'static str, primary: i64, replay: Replay) -> Finding {
    let behind = match replay.position {
        Some(position) => format!("{} bytes behind its primary", (primary - position).max(0)),
        None => "has replayed nothing yet".to_owned(),
    };
    // On an idle primary the newest commit grows old without anything being behind.
    let age = match replay.age {
        Some(age) if !replay.has_reached(primary) => format!("; the newest commit it shows is {age:.1} s old"),
        Some(_) | None => String::new(),
    };
    let finding =
        |verdict, state: &str| Finding::new("replica lag", Some(about), verdict, format!("{behind}{age}{state}"));
    if replay.is_paused {
        finding(Verdict::Warned, "; its replay is paused").advising(
            "run SELECT pg_wal_replay_resume() on it, or leave it out of the configuration: its reads grow old",
        )
    } else if !replay.is_streaming {
        finding(Verdict::Warned, "; no server sends it changes")
            .advising("check primary_conninfo, the primary's pg_hba.conf and the replica's log: its reads grow old")
    } else if !replay.has_reached(primary) {
        let state = format!(", {} s after it was to be there", PATIENCE.as_secs());
        finding(Verdict::Warned, &state)
            .advising("look for long queries on it, a slow disk or network, or a burst of writes: its reads are old")
    } else {
        finding(Verdict::Passed, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_is_behind_says_how_far_and_why() {
        let replay = Replay { position: Some(100), is_paused: false, is_streaming: true, age: Some(7.3) };
        for (replay, verdict, expected) in [
            (
                replay,
                Verdict::Warned,
                "50 bytes behind its primary; the newest commit it shows is 7.3 s old, 2 s after it was to be there",
            ),
            (Replay { position: Some(150), ..replay }, Verdict::Passed, "0 bytes behind its primary"),
            (Replay { position: Some(151), ..replay }, Verdict::Passed, "0 bytes behind its primary"),
            (
                Replay { position: Some(150), is_paused: true, ..replay },
                Verdict::Warned,
                "0 bytes behind its primary; its replay is paused",
            ),
            (
                Replay { position: Some(150), is_streaming: false, ..replay },
                Verdict::Warned,
                "0 bytes behind its primary; no server sends it changes",
            ),
            (
                Replay { position: None, age: None, ..replay },
                Verdict::Warned,
                "has replayed nothing yet, 2 s after it was to be there",
            ),
        ] {
            let finding = judge("KEY", 150, replay);
            assert_eq!((finding.verdict, finding.evidence.as_str()), (verdict, expected));
            assert_eq!(finding.advice.is_empty(), verdict == Verdict::Passed);
        }
    }
}
