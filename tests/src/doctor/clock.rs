//! How far the clock of a server is from the clock of this machine.
//!
//! A moment that the server told lies between asking and being answered. Taken to be in the middle, it is wrong by half
//! of the round trip at most, so the shortest of several round trips tells the most.

use std::time::Duration;

use super::report::{Finding, Verdict};

/// A difference that nobody need look at.
const UNNOTICED: Duration = Duration::from_secs(1);

/// One question, in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// This machine's clock, when it asked.
    pub(super) asked: i64,
    /// The server's clock.
    pub(super) told: i64,
    /// How long the answer took.
    pub(super) round_trip: i64,
}

/// By how much a server's clock is ahead, in microseconds, and by how much that can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Skew {
    ahead: i64,
    bound: i64,
}

impl Skew {
    fn measured(samples: &[Sample]) -> Option<Skew> {
        let shortest = samples.iter().min_by_key(|sample| sample.round_trip)?;
        // Rounded up, so that the bound holds.
        let bound = (shortest.round_trip + 1) / 2;
        Some(Skew { ahead: shortest.told - shortest.asked - shortest.round_trip / 2, bound })
    }

    /// The difference that is proven.
    fn at_least(self) -> i64 {
        (self.ahead.abs() - self.bound).max(0)
    }

    /// The difference that cannot be excluded.
    fn at_most(self) -> i64 {
        self.ahead.abs() + self.bound
    }
}

/// Judges a server's clock. `limit` is the difference that must not be reached.
pub(super) fn judge(about: &'static str, samples: &[Sample], limit: Duration) -> Finding {
    let finding = |verdict, evidence: String| Finding::new("clock skew", Some(about), verdict, evidence);
    let Some(skew) = Skew::measured(samples) else {
        return finding(Verdict::Failed, "no answer tells the time".to_owned());
    };
    let seconds = |microseconds: i64| microseconds as f64 / 1e6;
    let evidence = format!("the server is ahead by {:+.3} s ± {:.3} s", seconds(skew.ahead), seconds(skew.bound));
    if skew.at_least() >= micros(limit) {
        finding(Verdict::Failed, evidence).advising(format!(
            "synchronize the clocks of this machine and of the server (NTP): from {:.0} s on, processes can disagree on \
             where new runs are born",
            limit.as_secs_f64()
        ))
    } else if skew.at_most() > micros(UNNOTICED) {
        finding(Verdict::Warned, evidence).advising(
            "synchronize the clocks of this machine and of the server (NTP); if they are, the way to the server is slow",
        )
    } else {
        finding(Verdict::Passed, evidence)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn sample(asked: i64, told: i64, round_trip: i64) -> Sample {
        Sample { asked, told, round_trip }
    }

    #[test]
    fn the_shortest_round_trip_tells_the_most() {
        let samples = [sample(0, 900, 1_000), sample(5_000, 5_111, 21), sample(9_000, 9_300, 500)];
        assert_eq!(Skew::measured(&samples), Some(Skew { ahead: 101, bound: 11 }));
        assert_eq!(Skew::measured(&[]), None);
    }

    #[test]
    fn a_clock_is_judged_by_what_is_proven_and_by_what_cannot_be_excluded() {
        let second = 1_000_000;
        for (ahead, round_trip, expected) in [
            (0, 2, Verdict::Passed),
            (second - 1, 2, Verdict::Passed),
            (second, 2, Verdict::Warned),
            (-second, 2, Verdict::Warned),
            // It may be right; the way is too long to tell.
            (0, 3 * second, Verdict::Warned),
            (30 * second, 2, Verdict::Warned),
            (30 * second + 1, 2, Verdict::Failed),
            (-30 * second - 1, 2, Verdict::Failed),
            (31 * second, 4 * second, Verdict::Warned),
        ] {
            let asked = 1_700_000_000_000_000;
            let finding = judge("KEY", &[sample(asked, asked + round_trip / 2 + ahead, round_trip)], LIMIT);
            assert_eq!(finding.verdict, expected, "{ahead} µs ahead, {round_trip} µs there and back: {finding:?}");
            assert_eq!(finding.advice.is_empty(), expected == Verdict::Passed);
        }
    }
}
