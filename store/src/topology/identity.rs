//! Who a database says it is: its identity row, its place in a cluster, and whether it is a standby.
//!
//! All questions go out as plain texts, in one message each: a pooler that lends a session for the time of a transaction
//! carries them like any other.

use sea_orm::sqlx::postgres::PgRow;
use sea_orm::sqlx::{self, ConnectOptions, Connection, PgConnection, Row};

use super::config::{DatabaseConfig, SecretUrl};
use super::error::{Endpoint, TopologyError};
use crate::error::{ErrorKind, SqlState, classify_sqlx};
use crate::generated::schema_version::{CONTROL_PLANE_SCHEMA_VERSION, RUN_OPS_SCHEMA_VERSION};
use crate::residency::Residency;

/// What a server says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fingerprint {
    pub(super) is_standby: bool,
    /// Identifier of the cluster, where the role may read it.
    system: Option<i64>,
    /// When the server was started, to the microsecond; everybody may read it.
    started: String,
    /// The database within the cluster.
    database: i64,
    pub(super) identity: Option<Identity>,
}

/// The identity row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    store: String,
    pub(super) id: String,
    pub(super) schema_version: i64,
    pub(super) compatible_from: i64,
    /// The identity of the other database of a split, once runs are created there.
    pub(super) paired_with: Option<String>,
    /// When the last split was ended, if no other one was begun since; only in the run-ops database.
    pub(super) ended: Option<String>,
}

/// When a split was ended, in a query of the identity's columns: exact, and the same in every session.
pub(super) const ENDED: &str = "extract(epoch FROM split_ended_at)::text";

/// How two databases compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Comparison {
    /// They are two; this tells.
    Distinct(&'static str),
    /// They are one, or one and its copy; this tells.
    Same(&'static str),
    /// Nobody can tell, which counts as "the same".
    Unknown(&'static str),
}

impl Fingerprint {
    /// Whether two servers give the same database, or a database and a copy of it.
    ///
    /// The place tells: cluster and database or, where the cluster's identifier may not be read, database and the moment at
    /// which the server was started. It is asked first, for one database can have an identity in each of two schemas. After
    /// that two different ids prove two databases. Equal ids are refused even on different clusters: one is a copy and
    /// still calls itself the other.
    pub(super) fn compare(&self, other: &Self) -> Comparison {
        let ids = self.identity.as_ref().zip(other.identity.as_ref());
        let places = self.system.zip(other.system);
        if places.is_some_and(|(one, other)| one == other) && self.database == other.database {
            return Comparison::Same("one cluster, one database");
        }
        if places.is_none() && self.started == other.started && self.database == other.database {
            return Comparison::Same("servers started at one moment, one database");
        }
        match (ids, places) {
            (Some((one, other)), _) if one.id == other.id => {
                Comparison::Same("the identity of one is that of the other")
            }
            (_, Some((one, other))) if one != other => Comparison::Distinct("two clusters"),
            (_, Some(_)) => Comparison::Distinct("two databases of one cluster"),
            (Some(_), None) => Comparison::Distinct("two identities; the cluster is not told"),
            (None, None) => Comparison::Unknown("no identities, and the cluster is not told"),
        }
    }

    /// Whether this is a replica of `primary`. What has no identity is nobody's.
    pub(super) fn follows(&self, primary: &Self) -> bool {
        let ids = self.identity.as_ref().zip(primary.identity.as_ref());
        let same_id = ids.is_some_and(|(own, other)| own.id == other.id);
        let same_system = self.system.zip(primary.system).is_none_or(|(one, other)| one == other);
        same_id && same_system && self.database == primary.database
    }

    /// Whether this is the very database that `other` is, by another way.
    pub(super) fn is_same_server(&self, other: &Self) -> bool {
        self.is_standby == other.is_standby && self.follows(other)
    }
}

impl Identity {
    /// The kind of database it says it is, if it is one of ours.
    pub(super) fn kind(&self) -> Option<Residency> {
        Residency::ALL.into_iter().find(|residency| residency.key() == self.store)
    }

    /// Whether this build fits the schema.
    pub(super) fn check_schema(&self, endpoint: Endpoint) -> Result<(), TopologyError> {
        let known = known_schema(endpoint.database);
        if self.schema_version < known {
            return Err(TopologyError::SchemaTooOld { endpoint, found: self.schema_version, needed: known });
        }
        if self.compatible_from > known {
            return Err(TopologyError::SchemaTooNew { endpoint, needed: self.compatible_from, known });
        }
        Ok(())
    }
}

/// The schema version that this build was made for.
pub(super) fn known_schema(database: Residency) -> i64 {
    i64::from(match database {
        Residency::ControlPlane => CONTROL_PLANE_SCHEMA_VERSION,
        Residency::RunOps => RUN_OPS_SCHEMA_VERSION,
    })
}

/// Asks a server who it is, over a connection of its own.
pub(super) async fn probe(
    endpoint: Endpoint,
    config: &DatabaseConfig,
    url: &SecretUrl,
) -> Result<Fingerprint, TopologyError> {
    let asked = tokio::time::timeout(config.acquire_timeout, async {
        let mut connection = config.options(url).connect().await?;
        let fingerprint = ask(&mut connection).await?;
        connection.close().await?;
        Ok(fingerprint)
    });
    match asked.await {
        Err(_) => Err(TopologyError::Unreachable(endpoint)),
        Ok(answer) => answer.map_err(|error| refusal(endpoint, &error)),
    }
}

/// The columns of an identity. An older schema does not have them all.
const IDENTITY: &str = "store, id, schema_version::bigint, compatible_from::bigint,
    to_jsonb(store_identity) ->> 'paired_with' AS paired_with,
    extract(epoch FROM (to_jsonb(store_identity) ->> 'split_ended_at')::timestamptz)::text AS ended";

async fn ask(connection: &mut PgConnection) -> Result<Fingerprint, sqlx::Error> {
    let about = sqlx::raw_sql(
        "SELECT pg_is_in_recovery() AS is_standby, extract(epoch FROM pg_postmaster_start_time())::text AS started,
            (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database,
            to_regclass('store_identity') IS NOT NULL AS has_identity,
            coalesce(has_function_privilege(to_regprocedure('pg_control_system()'), 'EXECUTE'), FALSE) AS may_read_system",
    );
    let about = about.fetch_one(&mut *connection).await?;
    // Statements of their own: naming a function or a table fails where it may not be called or is not there.
    let system = if about.try_get("may_read_system")? {
        let system = sqlx::raw_sql("SELECT system_identifier FROM pg_control_system()");
        Some(system.fetch_one(&mut *connection).await?.try_get("system_identifier")?)
    } else {
        None
    };
    let identity = if about.try_get("has_identity")? {
        // A schema that is too old has no mark, and is still to say which version it is.
        let row = sqlx::AssertSqlSafe(format!("SELECT {IDENTITY} FROM store_identity"));
        sqlx::raw_sql(row).fetch_all(&mut *connection).await?.first().map(Identity::of_row).transpose()?
    } else {
        None
    };
    Ok(Fingerprint {
        is_standby: about.try_get("is_standby")?,
        system,
        started: about.try_get("started")?,
        database: about.try_get("database")?,
        identity,
    })
}

impl Identity {
    fn of_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            store: row.try_get("store")?,
            id: row.try_get("id")?,
            schema_version: row.try_get("schema_version")?,
            compatible_from: row.try_get("compatible_from")?,
            paired_with: row.try_get("paired_with")?,
            ended: row.try_get("ended")?,
        })
    }
}

fn refusal(endpoint: Endpoint, error: &sqlx::Error) -> TopologyError {
    let sqlstate = error.as_database_error().and_then(|error| error.code());
    match (sqlstate.as_deref(), classify_sqlx(error).0) {
        (Some("3D000"), _) => TopologyError::DatabaseMissing(endpoint),
        (_, ErrorKind::Authentication) => TopologyError::Authentication(endpoint),
        (_, ErrorKind::Unreachable | ErrorKind::Disconnected) => TopologyError::Unreachable(endpoint),
        (Some(code), _) => TopologyError::Refused(endpoint, SqlState::new(code)),
        (None, _) => TopologyError::Protocol(endpoint),
    }
}

/// What a database may say of the other database of a split.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Partner {
    /// Nothing: all runs live here.
    Nobody,
    /// Nothing yet, or this id.
    Is(String),
    /// Anything: it is opened for what does not depend on it.
    Anybody,
}

impl Partner {
    /// Those of a control plane and a run-ops database.
    pub(super) fn of_both(control_plane: &Fingerprint, run_ops: &Fingerprint) -> [Self; 2] {
        let partner = |found: &Fingerprint| {
            found.identity.as_ref().map_or(Self::Nobody, |identity| Self::Is(identity.id.clone()))
        };
        [partner(run_ops), partner(control_plane)]
    }

    /// Whether a database that is `paired_with` another one may be used.
    fn check(&self, paired_with: Option<&String>) -> Result<(), ErrorKind> {
        match (self, paired_with) {
            (_, None) | (Self::Anybody, Some(_)) => Ok(()),
            (Self::Nobody, Some(_)) => Err(ErrorKind::RunsElsewhere),
            (Self::Is(partner), Some(id)) if partner == id => Ok(()),
            (Self::Is(_), Some(_)) => Err(ErrorKind::PairedElsewhere),
        }
    }
}

/// What every connection of a pool has to lead to: the database that start-up found, in the same role, with the same partner.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    endpoint: Endpoint,
    id: String,
    partner: Partner,
    /// A copy has the same identity row, but another place.
    system: Option<i64>,
    database: i64,
}

/// One round trip for each new connection. `system` is where the cluster's identifier comes from.
fn who(system: &str) -> String {
    format!(
        "SELECT {IDENTITY}, (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database,
            {system} AS system, pg_is_in_recovery() AS is_standby FROM store_identity"
    )
}

impl Expected {
    /// What leads to the database that `primary` was found to be, which has this identity.
    pub(super) fn new(endpoint: Endpoint, id: String, partner: Partner, primary: &Fingerprint) -> Self {
        Self { endpoint, id, partner, system: primary.system, database: primary.database }
    }

    /// Asks a new connection who it leads to.
    ///
    /// # Errors
    /// The kind says why nothing may be read from it or written to it.
    pub(super) async fn check(&self, connection: &mut PgConnection) -> Result<(), ErrorKind> {
        let database = self.endpoint.database;
        // Asked for only where start-up could: a function that may not be called fails the statement.
        let system = self.system.map_or("NULL::bigint", |_| "(SELECT system_identifier FROM pg_control_system())");
        let who = sqlx::AssertSqlSafe(who(system));
        let answer = sqlx::raw_sql(who).fetch_all(&mut *connection).await.and_then(|rows| {
            let read = |row: &PgRow| {
                let place = (row.try_get("system")?, row.try_get("database")?);
                Ok::<_, sqlx::Error>((Identity::of_row(row)?, place, row.try_get("is_standby")?))
            };
            rows.first().map(read).transpose()
        });
        let (identity, place, is_standby): (Identity, (Option<i64>, i64), bool) = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(ErrorKind::SwappedDatabase),
            Err(error) => {
                let kind = classify_sqlx(&error).0;
                // Without the table, or with another one of its name, it is none of ours.
                let is_foreign = matches!(kind, ErrorKind::SchemaMismatch(_) | ErrorKind::Decode);
                return Err(if is_foreign { ErrorKind::SwappedDatabase } else { kind });
            }
        };
        let is_there = place == (self.system, self.database);
        if identity.id != self.id || !is_there || identity.kind() != Some(database) {
            return Err(ErrorKind::SwappedDatabase);
        }
        if is_standby != self.endpoint.is_replica {
            return Err(ErrorKind::RoleChanged);
        }
        // What a replica says of partners may be old; the primary is asked, too.
        if !self.endpoint.is_replica {
            self.partner.check(identity.paired_with.as_ref())?;
        }
        identity.check_schema(self.endpoint).map_err(|_| ErrorKind::SchemaChanged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(system: Option<i64>, database: i64, id: Option<&str>) -> Fingerprint {
        let identity = id.map(|id| Identity {
            store: "run_ops".to_owned(),
            id: id.to_owned(),
            schema_version: 1,
            compatible_from: 1,
            paired_with: None,
            ended: None,
        });
        Fingerprint { is_standby: false, system, started: "1".to_owned(), database, identity }
    }

    fn started_later(fingerprint: Fingerprint) -> Fingerprint {
        Fingerprint { started: "2".to_owned(), ..fingerprint }
    }

    #[test]
    fn two_databases_are_distinct_only_where_that_is_proven() {
        let here = fingerprint(Some(1), 5, Some("a"));
        let untold = fingerprint(None, 5, Some("a"));
        let untold_b = fingerprint(None, 5, Some("b"));
        let unnamed = fingerprint(None, 5, None);
        let cases = [
            ("the same database", &here, fingerprint(Some(1), 5, Some("a")), false),
            ("the same place, an identity that changed in between", &here, fingerprint(Some(1), 5, Some("b")), false),
            ("another database of the cluster", &here, fingerprint(Some(1), 6, Some("b")), true),
            ("another cluster", &here, fingerprint(Some(2), 5, Some("b")), true),
            ("a copy on another cluster", &here, fingerprint(Some(2), 5, Some("a")), false),
            ("a schema of its own in one database", &untold, fingerprint(None, 5, Some("b")), false),
            ("the same server by a role that may ask", &here, fingerprint(None, 5, Some("b")), false),
            ("another server that does not tell its cluster", &here, started_later(untold_b.clone()), true),
            ("two servers that do not tell their clusters", &untold, started_later(untold_b), true),
            ("another database of a server that does not tell", &untold, fingerprint(None, 6, Some("b")), true),
            ("two clusters that were started at one moment", &here, fingerprint(Some(2), 5, Some("b")), true),
            ("a server that does not tell its cluster, same identity", &here, fingerprint(None, 5, Some("a")), false),
            ("neither cluster nor identity", &here, unnamed.clone(), false),
            ("nothing is known of either", &unnamed, started_later(fingerprint(None, 6, None)), false),
        ];
        for (name, here, other, expected) in cases {
            let is_distinct = |one: &Fingerprint, other| matches!(one.compare(other), Comparison::Distinct(_));
            assert_eq!(is_distinct(here, &other), expected, "{name}");
            assert_eq!(is_distinct(&other, here), expected, "{name}, the other way round");
        }
    }

    #[test]
    fn what_has_no_identity_follows_nobody() {
        let (named, unnamed) = (fingerprint(Some(1), 5, Some("a")), fingerprint(Some(1), 5, None));
        assert!(named.follows(&named));
        for (one, other) in [(&unnamed, &unnamed), (&named, &unnamed), (&unnamed, &named)] {
            assert!(!one.follows(other));
        }
    }

    #[test]
    fn a_database_is_used_only_with_the_partner_that_is_known() {
        let is = |id: &str| Partner::Is(id.to_owned());
        let cases = [
            (Partner::Nobody, None, Ok(())),
            (Partner::Nobody, Some("a"), Err(ErrorKind::RunsElsewhere)),
            (is("a"), None, Ok(())),
            (is("a"), Some("a"), Ok(())),
            (is("a"), Some("b"), Err(ErrorKind::PairedElsewhere)),
            (Partner::Anybody, Some("a"), Ok(())),
        ];
        for (partner, mark, expected) in cases {
            assert_eq!(partner.check(mark.map(str::to_owned).as_ref()), expected, "{partner:?}, {mark:?}");
        }
    }
}
