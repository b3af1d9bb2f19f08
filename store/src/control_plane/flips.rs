//! Changing where an organization's new runs are born.
//!
//! A change does not take effect at once. It is stamped with the kind that was in force and the moment by the
//! database's clock, and for the grace period that kind stays in force: by then every process knows of the change, and
//! all of them switch at one moment. Only a genuine change is stamped, so that saving what is there already does not
//! begin another grace period, and a change back within one leaves the kind in force as it was all along.
//!
//! Changes of one organization wait for each other on its row, changes of the global kind on an advisory lock: the rows
//! of the global flags may not exist yet. The clock is read once the lock is held, so that stamps are in the order of
//! changes.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::sea_query::Value;
use sea_orm::{DbBackend, DbErr, Statement};

use super::Subject;
use super::flags::{Flags, KEYS, MintFlags, MintSource, MintStamp, Said, global, keys, own};
use super::generations::Subjects;
use crate::error::{Entity, Result, StoreError};
use crate::ids::OrganizationId;
use crate::postgres::{Columns, Row, Unit, text_array};
use crate::residency::Residency;

/// What serializes changes of the global kind: "runsmint" in ASCII.
const GLOBAL_LOCK: i64 = i64::from_be_bytes(*b"runsmint");

/// Locks an organization. `NO KEY`: rows that name it need not wait.
const LOCK_ORGANIZATION: &str = "SELECT 1 FROM organization WHERE id = $1 FOR NO KEY UPDATE";

const LOCK_GLOBAL: &str = "SELECT pg_advisory_xact_lock($1)";

/// In a statement of its own: one that waits for a lock may have read the clock before.
const CLOCK: &str = "SELECT clock_timestamp() AS now";

/// Puts flags into an organization's object and takes those out that are not among them. Nothing else of the object is
/// touched: it is changed where it lies. What is not an object has no flags that could be kept.
const SAVE_OWN: &str = "UPDATE organization
SET feature_flags = (CASE WHEN jsonb_typeof(feature_flags) = 'object' THEN feature_flags ELSE '{}' END - $2::text[])
        || jsonb_object($3::text[], $4::text[]),
    updated_at = clock_timestamp()
WHERE id = $1
RETURNING 1";

/// Takes the flags out of an organization's object.
const REMOVE_OWN: &str = "UPDATE organization
SET feature_flags = feature_flags - $2::text[], updated_at = clock_timestamp()
WHERE id = $1 AND jsonb_typeof(feature_flags) = 'object' AND feature_flags ?| $2::text[]
RETURNING 1";

/// Writes global flags and deletes those that are not among them.
const SAVE_GLOBAL: &str = "WITH gone AS (
    DELETE FROM feature_flag WHERE key = ANY ($1::text[]) AND key <> ALL ($3::text[])
)
INSERT INTO feature_flag AS flag (id, key, value)
SELECT id, key, to_jsonb(value) FROM unnest($2::text[], $3::text[], $4::text[]) AS saved (id, key, value)
ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = clock_timestamp()
RETURNING 1";

impl Flags {
    /// See [`Mint::set_organization_mint_kind`](super::Mint::set_organization_mint_kind).
    pub(super) async fn set_own(
        &self,
        organization: &OrganizationId,
        target: Option<Residency>,
        grace: Duration,
    ) -> Result<MintFlags> {
        let _forgotten = self.forget_in_the_end([own(organization)]);
        self.save_own(organization, target, grace).await
    }

    /// See [`Mint::set_global_mint_kind`](super::Mint::set_global_mint_kind).
    pub(super) async fn set_global(&self, target: Residency, grace: Duration) -> Result<MintFlags> {
        let _forgotten = self.forget_in_the_end(global());
        self.save_global(target, grace).await
    }

    /// Flags that this process keeps are forgotten once what this returns is gone: when they are saved, and also after an
    /// error, and if the caller gives up while the change is committed, for then it may have been applied.
    fn forget_in_the_end(&self, rows: impl IntoIterator<Item = Subject>) -> Forgotten<'_> {
        Forgotten { subjects: self.changes.subjects(), rows: rows.into_iter().collect() }
    }

    async fn save_own(
        &self,
        organization: &OrganizationId,
        target: Option<Residency>,
        grace: Duration,
    ) -> Result<MintFlags> {
        let operation = "set_organization_mint_kind";
        let unit = self.database.begin(operation).await?;
        if unit.rows(statement(LOCK_ORGANIZATION, [organization.as_str().into()])).await?.is_empty() {
            unit.abandon().await;
            return Err(StoreError::not_found(operation, Some(Residency::ControlPlane), Entity::Organization));
        }
        let now = clock(&unit).await?;
        let said = said(&unit, Some(organization)).await?;
        let id = organization.as_str();
        let (flags, change) = match target {
            Some(target) => {
                let inherited = said.inherited().in_force(now, grace);
                let flags = saved(MintSource::Organization, said.own, inherited, target, now, grace);
                let [names, texts] = columns(&flags);
                (flags, statement(SAVE_OWN, [id.into(), keys(), names, texts]))
            }
            None => (said.inherited(), statement(REMOVE_OWN, [id.into(), keys()])),
        };
        write(unit, said.own == Some(flags), change).await?;
        Ok(flags)
    }

    async fn save_global(&self, target: Residency, grace: Duration) -> Result<MintFlags> {
        let unit = self.database.begin("set_global_mint_kind").await?;
        unit.rows(statement(LOCK_GLOBAL, [GLOBAL_LOCK.into()])).await?;
        let now = clock(&unit).await?;
        let said = said(&unit, None).await?;
        let inherited = MintFlags::DEFAULT.kind;
        let flags = saved(MintSource::Global, said.global, inherited, target, now, grace);
        let ids = text_array(KEYS.iter().take(flags.texts().len()).map(|_| cuid1::cuid()).collect());
        let [names, texts] = columns(&flags);
        write(unit, said.global == Some(flags), statement(SAVE_GLOBAL, [keys(), ids, names, texts])).await?;
        Ok(flags)
    }
}

/// Rows that are invalidated when this is dropped.
struct Forgotten<'a> {
    subjects: &'a Subjects,
    rows: Vec<Subject>,
}

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        self.rows.iter().for_each(|row| self.subjects.invalidate(row));
    }
}

/// What is stored once `target` is saved over `stored`. Where nothing is stored, `inherited` was in force.
fn saved(
    source: MintSource,
    stored: Option<MintFlags>,
    inherited: Residency,
    target: Residency,
    now: DateTime<Utc>,
    grace: Duration,
) -> MintFlags {
    let stamp = |previous| Some(MintStamp { previous, flipped_at: now });
    let stamp = match stored {
        Some(stored) if stored.kind == target => stored.stamp,
        Some(stored) => stamp(stored.in_force(now, grace)),
        None if inherited == target => None,
        None => stamp(inherited),
    };
    MintFlags { kind: target, stamp, source }
}

/// The moment by the database's clock.
struct Now(DateTime<Utc>);

impl Row for Now {
    const WIDTH: usize = 1;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self(columns.value()?))
    }
}

async fn clock(unit: &Unit<'_>) -> Result<DateTime<Utc>> {
    let now = unit.fetch::<Now>(statement(CLOCK, [])).await?.pop();
    // A statement without a table has one row.
    now.map(|Now(now)| now).ok_or_else(|| unit.decode_error(&DbErr::Type(String::new())))
}

async fn said(unit: &Unit<'_>, organization: Option<&OrganizationId>) -> Result<Said> {
    Ok(Said::of(&unit.fetch(Said::statement(organization)).await?))
}

/// Carries out a change and commits it, unless all is as it should be already.
async fn write(unit: Unit<'_>, is_saved: bool, change: Statement) -> Result<()> {
    if is_saved {
        unit.abandon().await;
        return Ok(());
    }
    unit.rows(change).await?;
    unit.commit().await?;
    Ok(())
}

/// Keys and texts of flags.
fn columns(flags: &MintFlags) -> [Value; 2] {
    let (names, texts) = flags.texts().into_iter().map(|(key, text)| (key.to_owned(), text)).unzip();
    [text_array(names), text_array(texts)]
}

fn statement(text: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, text, values)
}

#[cfg(test)]
mod tests {
    use chrono::{TimeDelta, TimeZone};

    use super::*;
    use Residency::{ControlPlane, RunOps};

    const GRACE: Duration = Duration::from_secs(90);

    fn noon() -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 8, 1, 12, 0, 0).single().expect("a moment")
    }

    /// What a save at noon makes of what is stored.
    #[test]
    fn only_a_genuine_change_is_stamped_and_with_the_kind_in_force() {
        let stored = |kind, previous, seconds_ago: i64| {
            let stamp = Some(MintStamp { previous, flipped_at: noon() - TimeDelta::seconds(seconds_ago) });
            Some(MintFlags { kind, stamp, source: MintSource::Organization })
        };
        let unstamped = |kind| Some(MintFlags { kind, stamp: None, source: MintSource::Organization });
        let cases = [
            // name, stored, inherited, target; expected: previous and seconds ago
            ("the first, another than inherited", None, ControlPlane, RunOps, Some((ControlPlane, 0))),
            ("the first, back from inherited", None, RunOps, ControlPlane, Some((RunOps, 0))),
            ("the first, as inherited", None, RunOps, RunOps, None),
            ("unchanged, never stamped", unstamped(RunOps), ControlPlane, RunOps, None),
            ("unchanged, within grace", stored(RunOps, ControlPlane, 10), RunOps, RunOps, Some((ControlPlane, 10))),
            ("unchanged, after grace", stored(RunOps, ControlPlane, 500), RunOps, RunOps, Some((ControlPlane, 500))),
            ("changed, never stamped", unstamped(RunOps), ControlPlane, ControlPlane, Some((RunOps, 0))),
            ("changed after grace", stored(RunOps, ControlPlane, 90), RunOps, ControlPlane, Some((RunOps, 0))),
            // The kind in force was the control plane and stays it.
            ("back within grace", stored(RunOps, ControlPlane, 89), RunOps, ControlPlane, Some((ControlPlane, 0))),
        ];
        for (name, stored, inherited, target, expected) in cases {
            let saved = saved(MintSource::Organization, stored, inherited, target, noon(), GRACE);
            let stamp = expected
                .map(|(previous, seconds)| MintStamp { previous, flipped_at: noon() - TimeDelta::seconds(seconds) });
            assert_eq!(saved, MintFlags { kind: target, stamp, source: MintSource::Organization }, "{name}");
        }
    }

    #[test]
    fn a_save_never_changes_what_is_in_force_at_its_moment() {
        for kind in Residency::ALL {
            for previous in Residency::ALL {
                for seconds in [0, 10, 89, 90, 500] {
                    let flipped_at = noon() - TimeDelta::seconds(seconds);
                    for stamp in [None, Some(MintStamp { previous, flipped_at })] {
                        let stored = MintFlags { kind, stamp, source: MintSource::Organization };
                        for target in Residency::ALL {
                            let saved = saved(stored.source, Some(stored), previous, target, noon(), GRACE);
                            let [before, after] = [stored, saved].map(|flags| flags.in_force(noon(), GRACE));
                            assert_eq!(before, after, "{target} saved over {stored:?}");
                        }
                    }
                }
            }
        }
    }
}
