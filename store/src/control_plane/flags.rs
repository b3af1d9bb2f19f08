//! The flags that say where an organization's new runs are born.
//!
//! Two places have them under the same keys: the organization's own object of flags, and the global flags, one row
//! each.
//!
//! | key | value |
//! |---|---|
//! | `runOpsMintKind` | `cuid` for the control plane, `runOpsId` for run-ops |
//! | `runOpsMintKindPrev` | the kind in force before the last flip, the same two words |
//! | `runOpsMintKindFlippedAt` | the moment of that flip by the database's clock, as ISO 8601 has it |
//!
//! Whoever has a usable kind has the whole say: kind and stamp come from one place and are never mixed. Whatever is not
//! as above counts as absent, be it a number, another word, or an object that is an array. A stamp of which one half is
//! missing or not usable is none.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use sea_orm::sea_query::Value;
use sea_orm::{DbBackend, DbErr, Statement};
use serde_json::Value as Json;

use super::cache::{CacheConfig, CacheStats, Key, Slot};
use super::listen::Changes;
use super::{Answer, Subject, SubjectKind};
use crate::error::Result;
use crate::ids::OrganizationId;
use crate::postgres::{Columns, Database, Row, text_array};
use crate::read::Read;
use crate::residency::Residency;

/// The key of the kind.
pub(super) const KIND: &str = "runOpsMintKind";
/// The key of the kind before the last flip.
pub(super) const PREVIOUS: &str = "runOpsMintKindPrev";
/// The key of the moment of the last flip.
pub(super) const FLIPPED_AT: &str = "runOpsMintKindFlippedAt";
/// All of them.
pub(super) const KEYS: [&str; 3] = [KIND, PREVIOUS, FLIPPED_AT];

/// The flags of an organization and the global ones, in a row each. Only texts: no other value can mean anything.
const FLAGS: &str = "SELECT TRUE AS is_own, own.key, own.value #>> '{}' AS value
FROM organization, jsonb_each(CASE WHEN jsonb_typeof(feature_flags) = 'object' THEN feature_flags END) AS own
WHERE organization.id = $1 AND own.key = ANY ($2) AND jsonb_typeof(own.value) = 'string'
UNION ALL
SELECT FALSE, key, value #>> '{}' FROM feature_flag WHERE key = ANY ($2) AND jsonb_typeof(value) = 'string'";

/// What the flags say about the database of an organization's new runs.
///
/// This is what may be kept for a while, and not which of two kinds is in force: that is told by the clock each time,
/// so that a flip takes effect everywhere at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MintFlags {
    /// The kind that was asked for.
    pub kind: Residency,
    /// The last change of the kind, unless it was always the same.
    pub stamp: Option<MintStamp>,
    /// Who says so.
    pub source: MintSource,
}

/// A change of the kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MintStamp {
    /// The kind that was in force until then, and stays so for the grace period.
    pub previous: Residency,
    /// When it was changed, by the clock of the control plane's database.
    pub flipped_at: DateTime<Utc>,
}

/// Where flags come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MintSource {
    /// The organization's own object of flags.
    Organization,
    /// The global flags.
    Global,
    /// Nobody has said anything.
    Default,
}

impl MintFlags {
    /// What holds where nobody has said anything: runs are born in the control plane.
    pub const DEFAULT: MintFlags =
        MintFlags { kind: Residency::ControlPlane, stamp: None, source: MintSource::Default };

    /// The kind in force at a moment: until `grace` has passed since a flip the previous one, from then on the one that
    /// was asked for.
    #[must_use]
    pub fn in_force(&self, now: DateTime<Utc>, grace: Duration) -> Residency {
        self.previous_in_force(now, grace).unwrap_or(self.kind)
    }

    /// The previous kind, as long as it is in force.
    pub(super) fn previous_in_force(&self, now: DateTime<Utc>, grace: Duration) -> Option<Residency> {
        let MintStamp { previous, flipped_at } = self.stamp?;
        let grace = TimeDelta::from_std(grace).unwrap_or(TimeDelta::MAX);
        (now.signed_duration_since(flipped_at) < grace).then_some(previous)
    }

    /// The flags of an organization as they were read with an environment of it, if it has a say of its own.
    pub(super) fn own(feature_flags: Option<&Json>) -> Option<Self> {
        // Neither an array nor a scalar has anything by a name.
        let feature_flags = feature_flags?;
        Self::said_by(MintSource::Organization, |key| feature_flags.get(key).and_then(Json::as_str))
    }

    /// The flags of one place, if there is a usable kind in it.
    fn said_by<'a>(source: MintSource, text: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let kind = kind_named(text(KIND)?)?;
        Some(Self { kind, stamp: stamp(text), source })
    }

    /// The flags as they are stored, by their keys.
    pub(super) fn texts(&self) -> Vec<(&'static str, String)> {
        let mut texts = vec![(KIND, name(self.kind).to_owned())];
        if let Some(MintStamp { previous, flipped_at }) = self.stamp {
            texts.push((PREVIOUS, name(previous).to_owned()));
            texts.push((FLIPPED_AT, flipped_at.to_rfc3339_opts(SecondsFormat::Micros, true)));
        }
        texts
    }
}

fn stamp<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Option<MintStamp> {
    let previous = kind_named(text(PREVIOUS)?)?;
    let flipped_at = DateTime::parse_from_rfc3339(text(FLIPPED_AT)?).ok()?.to_utc();
    Some(MintStamp { previous, flipped_at })
}

/// The word for a kind.
fn name(kind: Residency) -> &'static str {
    match kind {
        Residency::ControlPlane => "cuid",
        Residency::RunOps => "runOpsId",
    }
}

fn kind_named(word: &str) -> Option<Residency> {
    Residency::ALL.into_iter().find(|kind| name(*kind) == word)
}

/// A flag as it is stored.
pub(super) struct Flag {
    /// Whether it is the organization's.
    is_own: bool,
    key: String,
    value: String,
}

impl Row for Flag {
    const WIDTH: usize = 3;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self { is_own: columns.value()?, key: columns.value()?, value: columns.value()? })
    }
}

/// What both places say, each by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Said {
    pub(super) own: Option<MintFlags>,
    pub(super) global: Option<MintFlags>,
}

impl Said {
    /// The statement that reads it: for an organization, or for the global flags alone.
    pub(super) fn statement(organization: Option<&OrganizationId>) -> Statement {
        let organization = organization.map(OrganizationId::as_str);
        Statement::from_sql_and_values(DbBackend::Postgres, FLAGS, [organization.into(), keys()])
    }

    pub(super) fn of(flags: &[Flag]) -> Self {
        let said_by = |source, is_own| {
            let find = |key: &str| flags.iter().find(|flag| flag.is_own == is_own && flag.key == key);
            MintFlags::said_by(source, |key| find(key).map(|flag| flag.value.as_str()))
        };
        Self { own: said_by(MintSource::Organization, true), global: said_by(MintSource::Global, false) }
    }

    /// Where the organization says nothing.
    pub(super) fn inherited(&self) -> MintFlags {
        self.global.unwrap_or(MintFlags::DEFAULT)
    }

    /// What holds for the organization.
    pub(super) fn resolved(&self) -> MintFlags {
        self.own.unwrap_or_else(|| self.inherited())
    }
}

pub(super) fn keys() -> Value {
    text_array(KEYS.map(str::to_owned).to_vec())
}

/// The flags of organizations, kept for a while.
///
/// They are read on the primary: what a replica lags behind would have to be less than the grace period too. For that
/// reason flags that came with an environment count only where there is no replica.
pub(super) struct Flags {
    pub(super) database: Arc<Database>,
    pub(super) changes: Arc<Changes>,
    slot: Slot<FlagsOf, MintFlags>,
}

impl Flags {
    /// `changes` are those of flags that are heard of.
    pub(super) fn new(database: Arc<Database>, config: &CacheConfig, changes: Arc<Changes>) -> Self {
        let slot = Slot::new(READ, config, changes.subjects(), false);
        Self { database, changes, slot }
    }

    /// What holds for an organization, one that is not there included. One statement, unless it is kept.
    pub(super) async fn resolve(&self, organization: &OrganizationId) -> Result<MintFlags> {
        let (database, id) = (Arc::clone(&self.database), organization.clone());
        let ask = move |read| -> BoxFuture<'static, Result<Answer<MintFlags>>> {
            let (database, id) = (Arc::clone(&database), id.clone());
            // Boxed: whoever is given an id awaits a future of a size that does not grow with the driver's.
            Box::pin(async move { resolution(&database, read, &id).await })
        };
        let flags = self.slot.get(FlagsOf(organization.clone()), ask).await?;
        Ok(flags.unwrap_or(MintFlags::DEFAULT))
    }

    pub(super) fn stats(&self) -> CacheStats {
        self.slot.stats()
    }
}

/// The operation that reads flags.
const READ: &str = "read_mint_flags";

/// There is always a resolution: where nothing is said, it is the default.
async fn resolution(database: &Database, read: Read, organization: &OrganizationId) -> Result<Answer<MintFlags>> {
    let flags = database.fetch(READ, read, Said::statement(Some(organization))).await?;
    // About what the key is about: the rows are the same, whatever they say.
    Ok(Answer { value: Some(Said::of(&flags).resolved()), about: Vec::new() })
}

/// Whose flags are asked for.
#[derive(Clone, PartialEq, Eq, Hash)]
struct FlagsOf(OrganizationId);

impl Key for FlagsOf {
    fn subjects(&self) -> Vec<Subject> {
        global().chain([own(&self.0)]).collect()
    }
}

/// The row with an organization's flags.
pub(super) fn own(organization: &OrganizationId) -> Subject {
    Subject::new(SubjectKind::Organization, organization.as_str())
}

/// The rows of the global flags.
pub(super) fn global() -> impl Iterator<Item = Subject> {
    KEYS.into_iter().map(|key| Subject::new(SubjectKind::Flag, key))
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use serde_json::json;

    use super::*;
    use Residency::{ControlPlane, RunOps};

    fn noon() -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 8, 1, 12, 0, 0).single().expect("a moment")
    }

    fn stamped(kind: Residency, previous: Residency) -> MintFlags {
        let stamp = Some(MintStamp { previous, flipped_at: noon() });
        MintFlags { kind, stamp, source: MintSource::Organization }
    }

    #[test]
    fn what_is_not_a_usable_flag_is_absent() {
        let plain = |kind| Some(MintFlags { stamp: None, ..stamped(kind, kind) });
        let at = "2026-08-01T12:00:00Z";
        let cases = [
            ("nothing", json!(null), None),
            ("an empty object", json!({}), None),
            ("an array", json!(["runOpsMintKind", "runOpsId"]), None),
            ("a text", json!("runOpsId"), None),
            ("a number", json!(7), None),
            ("another word", json!({ KIND: "ksuid" }), None),
            ("another case", json!({ KIND: "RunOpsId" }), None),
            ("a kind that is a number", json!({ KIND: 1 }), None),
            ("a kind that is an array", json!({ KIND: ["runOpsId"] }), None),
            ("a kind that is null", json!({ KIND: null }), None),
            ("a stamp without a kind", json!({ PREVIOUS: "runOpsId", FLIPPED_AT: at }), None),
            ("run-ops", json!({ KIND: "runOpsId" }), plain(RunOps)),
            ("control plane", json!({ KIND: "cuid" }), plain(ControlPlane)),
            ("a moment alone", json!({ KIND: "runOpsId", FLIPPED_AT: at }), plain(RunOps)),
            ("a previous kind alone", json!({ KIND: "runOpsId", PREVIOUS: "cuid" }), plain(RunOps)),
            ("an unknown previous kind", json!({ KIND: "runOpsId", PREVIOUS: "uuid", FLIPPED_AT: at }), plain(RunOps)),
            (
                "a moment that is a number",
                json!({ KIND: "runOpsId", PREVIOUS: "cuid", FLIPPED_AT: 1_785_585_600 }),
                plain(RunOps),
            ),
            (
                "a moment that is none",
                json!({ KIND: "runOpsId", PREVIOUS: "cuid", FLIPPED_AT: "yesterday" }),
                plain(RunOps),
            ),
            (
                "all three",
                json!({ KIND: "runOpsId", PREVIOUS: "cuid", FLIPPED_AT: "2026-08-01T14:00:00.000+02:00" }),
                Some(stamped(RunOps, ControlPlane)),
            ),
        ];
        for (name, flags, expected) in cases {
            assert_eq!(MintFlags::own(Some(&flags)), expected, "{name}");
        }
        assert_eq!(MintFlags::own(None), None);
    }

    #[test]
    fn flags_are_read_as_they_were_written() {
        for flags in [
            stamped(RunOps, ControlPlane),
            stamped(ControlPlane, RunOps),
            MintFlags { stamp: None, ..stamped(RunOps, RunOps) },
        ] {
            let written: Json = flags.texts().into_iter().map(|(key, text)| (key.to_owned(), json!(text))).collect();
            assert_eq!(MintFlags::own(Some(&written)), Some(flags));
        }
    }

    #[test]
    fn the_new_kind_is_in_force_from_the_end_of_the_grace_period_on() {
        let flags = stamped(RunOps, ControlPlane);
        let grace = Duration::from_secs(90);
        let micro = TimeDelta::microseconds(1);
        let cases = [
            ("long before the flip, by a clock that is late", noon() - TimeDelta::hours(1), ControlPlane),
            ("at the flip", noon(), ControlPlane),
            ("just before the end", noon() + grace - micro, ControlPlane),
            ("at the end", noon() + grace, RunOps),
            ("just after the end", noon() + grace + micro, RunOps),
        ];
        for (name, now, expected) in cases {
            assert_eq!(flags.in_force(now, grace), expected, "{name}");
        }
        assert_eq!(flags.in_force(noon(), Duration::ZERO), RunOps, "without grace a flip is in force at once");
        assert_eq!(MintFlags { stamp: None, ..flags }.in_force(noon(), grace), RunOps, "without a stamp");
        // No moment and no period is too far away to count with.
        for (now, grace, expected) in [
            (DateTime::<Utc>::MAX_UTC, Duration::MAX, ControlPlane),
            (DateTime::<Utc>::MAX_UTC, grace, RunOps),
            (DateTime::<Utc>::MIN_UTC, Duration::MAX, ControlPlane),
        ] {
            assert_eq!(flags.in_force(now, grace), expected, "{now}, {grace:?}");
        }
    }
}
