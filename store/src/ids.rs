//! Typed ids: one type for each kind, parsed once at the edge, minted here.
//!
//! Run and batch ids are [`Routable`]: their shape tells the database. All other ids are plain names.
//!
//! ```
//! use store::{Residency, Routable, RunId, RunKey};
//!
//! let id = RunId::mint(Residency::RunOps);
//! assert_eq!(id.residency(), Residency::RunOps);
//! assert_eq!(id.friendly().to_string(), format!("run_{id}"));
//!
//! // What a user hands in may be any of three forms.
//! let key: RunKey = format!("run_{id}").parse()?;
//! assert_eq!(key, RunKey::Friendly(id.friendly()));
//! # Ok::<(), store::UnclassifiableId>(())
//! ```

use std::fmt;
use std::str::FromStr;

use arrayvec::ArrayString;
use chrono::{DateTime, Utc};
use ksuid::KsuidLike;

use crate::residency::{
    CUID_LENGTH, IdFault, KSUID_LENGTH, OLD_FRIENDLY_LENGTH, Residency, Routable, UnclassifiableId,
    is_old_friendly_body, sealed::Sealed, shape,
};

/// Defines a routable id, plain and friendly.
macro_rules! routable_id {
    ($plain:ident, $friendly:ident, $prefix:literal, $what:literal) => {
        #[doc = concat!("Id of a ", $what, ": a cuid or a KSUID. Its shape tells the database.")]
        ///
        /// Ordered bytewise, as in both databases. Never change its case: two ids may differ in case only.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $plain {
            body: ArrayString<KSUID_LENGTH>,
        }

        impl $plain {
            /// A new id for a row that will live in `residency`: a cuid or a KSUID of this second.
            #[must_use]
            pub fn mint(residency: Residency) -> Self {
                Self { body: mint(residency) }
            }

            /// A KSUID made of a moment and up to 16 bytes that the caller chooses; the rest is random.
            ///
            /// `at` is cut to the second. Ids of different seconds sort by time.
            ///
            /// # Errors
            /// [`KsuidError`] if the payload is longer than 16 bytes or the moment cannot be told in a KSUID.
            pub fn mint_run_ops_at(at: DateTime<Utc>, payload: &[u8]) -> Result<Self, KsuidError> {
                Ok(Self { body: ksuid_of(at, payload)? })
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.body
            }

            #[doc = concat!("The public form: `", $prefix, "_` and the same body.")]
            #[must_use]
            pub fn friendly(&self) -> $friendly {
                $friendly { plain: *self }
            }
        }

        impl Sealed for $plain {}

        impl Routable for $plain {
            fn residency(&self) -> Residency {
                residency_of_valid(&self.body)
            }
        }

        impl FromStr for $plain {
            type Err = UnclassifiableId;

            /// Takes the plain form only.
            fn from_str(text: &str) -> Result<Self, UnclassifiableId> {
                match shape(text) {
                    Ok(_) => Ok(Self { body: keep(text) }),
                    Err(_) if text.contains('_') => Err(UnclassifiableId::new(text, text.len(), IdFault::Prefix)),
                    Err(fault) => Err(UnclassifiableId::new(text, text.len(), fault)),
                }
            }
        }

        impl fmt::Display for $plain {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.body)
            }
        }

        impl fmt::Debug for $plain {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($plain), "({})"), self.body)
            }
        }

        impl AsRef<str> for $plain {
            fn as_ref(&self) -> &str {
                &self.body
            }
        }

        #[doc = concat!("Public form of a [`", stringify!($plain), "`]: `", $prefix, "_` and the body of the id.")]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $friendly {
            plain: $plain,
        }

        impl $friendly {
            /// The prefix, underscore included.
            pub const PREFIX: &'static str = concat!($prefix, "_");

            /// The plain id with the same body.
            #[must_use]
            pub fn id(&self) -> $plain {
                self.plain
            }
        }

        impl Sealed for $friendly {}

        impl Routable for $friendly {
            fn residency(&self) -> Residency {
                self.plain.residency()
            }
        }

        impl FromStr for $friendly {
            type Err = UnclassifiableId;

            /// Takes the friendly form only; the oldest one, which cannot be routed, is refused.
            fn from_str(text: &str) -> Result<Self, UnclassifiableId> {
                let Some(body) = text.strip_prefix(Self::PREFIX) else {
                    return Err(UnclassifiableId::new(text, text.len(), IdFault::Prefix));
                };
                let fault = |fault| UnclassifiableId::new(text, body.len(), fault);
                if is_old_friendly_body(body) {
                    return Err(fault(IdFault::Unrouted));
                }
                shape(body).map_err(fault)?;
                Ok(Self { plain: $plain { body: keep(body) } })
            }
        }

        impl fmt::Display for $friendly {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}"), self.plain)
            }
        }

        impl fmt::Debug for $friendly {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($friendly), "({})"), self)
            }
        }
    };
}

routable_id!(RunId, RunFriendlyId, "run", "run");
routable_id!(BatchId, BatchFriendlyId, "batch", "batch");

/// Defines the friendly id of the oldest form, and the ways in which a row to be read can be named.
macro_rules! readable_key {
    ($plain:ident, $friendly:ident, $unrouted:ident, $key:ident, $prefix:literal, $what:literal) => {
        #[doc = concat!("Friendly ", $what, " id of the oldest form, `", $prefix, "_` and 21 characters.")]
        ///
        /// Its row lives in the control plane under a plain id with another body, so it routes nowhere: reads look in every
        /// database, writes do not take it.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $unrouted {
            body: ArrayString<OLD_FRIENDLY_LENGTH>,
        }

        impl FromStr for $unrouted {
            type Err = UnclassifiableId;

            fn from_str(text: &str) -> Result<Self, UnclassifiableId> {
                let Some(body) = text.strip_prefix($friendly::PREFIX) else {
                    return Err(UnclassifiableId::new(text, text.len(), IdFault::Prefix));
                };
                if !is_old_friendly_body(body) {
                    let fault = if body.len() == OLD_FRIENDLY_LENGTH { IdFault::Alphabet } else { IdFault::Length };
                    return Err(UnclassifiableId::new(text, body.len(), fault));
                }
                Ok(Self { body: keep(body) })
            }
        }

        impl fmt::Display for $unrouted {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $friendly::PREFIX, self.body)
            }
        }

        impl fmt::Debug for $unrouted {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($unrouted), "({})"), self)
            }
        }

        #[doc = concat!("How a caller names the one ", $what, " it wants to read: by id, by friendly id, or by a friendly id of the")]
        /// oldest form.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $key {
            /// The plain id.
            Id($plain),
            /// The public form of the id.
            Friendly($friendly),
            /// A friendly id that tells nothing about the database.
            Unrouted($unrouted),
        }

        impl $key {
            /// The database to read, or that none can be told.
            #[must_use]
            pub fn home(&self) -> Home {
                match self {
                    $key::Id(id) => Home::Routed(id.residency()),
                    $key::Friendly(id) => Home::Routed(id.residency()),
                    $key::Unrouted(_) => Home::Unrouted,
                }
            }
        }

        impl FromStr for $key {
            type Err = UnclassifiableId;

            /// Takes whatever a user may hand in: a plain id or a friendly one of either form.
            fn from_str(text: &str) -> Result<Self, UnclassifiableId> {
                match text.strip_prefix($friendly::PREFIX) {
                    None => text.parse().map($key::Id),
                    Some(body) if is_old_friendly_body(body) => text.parse().map($key::Unrouted),
                    Some(_) => text.parse().map($key::Friendly),
                }
            }
        }

        impl From<$plain> for $key {
            fn from(id: $plain) -> Self {
                $key::Id(id)
            }
        }

        impl From<$friendly> for $key {
            fn from(id: $friendly) -> Self {
                $key::Friendly(id)
            }
        }

        impl From<$unrouted> for $key {
            fn from(id: $unrouted) -> Self {
                $key::Unrouted(id)
            }
        }
    };
}

readable_key!(RunId, RunFriendlyId, UnroutedRunFriendlyId, RunKey, "run", "run");
readable_key!(BatchId, BatchFriendlyId, UnroutedBatchFriendlyId, BatchKey, "batch", "batch");

/// What the form of a [`RunKey`] or [`BatchKey`] tells about the database of its row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// The row lives there or nowhere.
    Routed(Residency),
    /// The row may be in any database.
    Unrouted,
}

/// Defines an id that is only a name: no shape is asked of it and nothing is routed by it.
macro_rules! plain_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

        }

        impl FromStr for $name {
            type Err = UnclassifiableId;

            /// Takes 1 to 64 visible ASCII characters.
            fn from_str(text: &str) -> Result<Self, UnclassifiableId> {
                check_plain(text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = UnclassifiableId;

            fn try_from(text: String) -> Result<Self, UnclassifiableId> {
                check_plain(&text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

/// Adds to an id what the store needs that makes its rows.
macro_rules! minted_id {
    ($name:ident) => {
        impl $name {
            /// A new id. It is a cuid whichever database the row will live in.
            #[must_use]
            pub fn mint() -> Self {
                Self(cuid1::cuid().into())
            }
        }
    };
}

/// Adds to an id what the store needs that takes it from a row.
macro_rules! stored_id {
    ($name:ident) => {
        impl $name {
            /// An id as a row holds it, unchecked: what the database has is what is meant.
            pub(crate) fn stored(text: &str) -> Self {
                Self(text.into())
            }
        }
    };
}

plain_id! {
    /// Id of an execution snapshot. It lies beside its run; reach it through the run's id.
    SnapshotId
}
minted_id!(SnapshotId);
stored_id!(SnapshotId);

plain_id! {
    /// Id of a waitpoint. It lies beside the run or batch it belongs to, whatever its own shape.
    WaitpointId
}
minted_id!(WaitpointId);
stored_id!(WaitpointId);

plain_id! {
    /// Id of a block edge ("this run waits for that waitpoint"). It lies beside the run that waits.
    EdgeId
}
minted_id!(EdgeId);
stored_id!(EdgeId);

plain_id! {
    /// Id of a checkpoint. It lies beside the run whose snapshot names it.
    CheckpointId
}
minted_id!(CheckpointId);

impl CheckpointId {
    /// The public form, `checkpoint_` and the same body.
    #[must_use]
    pub fn friendly(&self) -> String {
        format!("checkpoint_{}", self.0)
    }
}

plain_id! {
    /// Id of a batch item. It lies beside its batch.
    BatchItemId
}
minted_id!(BatchItemId);

plain_id! {
    /// Id of an error of a batch. It lies beside its batch.
    BatchErrorId
}
minted_id!(BatchErrorId);

plain_id! {
    /// Id of an attempt of the old engine. It lies beside its run.
    AttemptId
}
minted_id!(AttemptId);

plain_id! {
    /// Public form of an attempt's id. Its body is another one than the plain id's.
    AttemptFriendlyId
}

plain_id! {
    /// Id of a waitpoint tag. It tells nothing about the database of the row.
    WaitpointTagId
}
minted_id!(WaitpointTagId);

impl WaitpointId {
    /// The public form, `waitpoint_` and the same body.
    #[must_use]
    pub fn friendly(&self) -> String {
        format!("waitpoint_{}", self.0)
    }

    /// Where to look first, if nothing better is known. It proves nothing: the ids of all databases have one shape.
    pub(crate) fn shape_hint(&self) -> Residency {
        shape(&self.0).unwrap_or(Residency::ControlPlane)
    }
}

plain_id! {
    /// Id of an organization, a control-plane row.
    OrganizationId
}
stored_id!(OrganizationId);

plain_id! {
    /// Id of a project, a control-plane row.
    ProjectId
}
stored_id!(ProjectId);

plain_id! {
    /// Id of a runtime environment, a control-plane row.
    EnvironmentId
}
stored_id!(EnvironmentId);

plain_id! {
    /// Id of a worker version (`background_worker`), a control-plane row.
    WorkerId
}
stored_id!(WorkerId);

plain_id! {
    /// Id of one task of a worker version (`background_worker_task`), a control-plane row.
    WorkerTaskId
}
stored_id!(WorkerTaskId);

plain_id! {
    /// Id of a queue (`task_queue`), a control-plane row.
    QueueId
}
stored_id!(QueueId);

/// Longest text taken as a plain id. The longest ids in use are UUIDs, with 36 characters.
const PLAIN_ID_LIMIT: usize = 64;

fn check_plain(text: &str) -> Result<(), UnclassifiableId> {
    let fault = match text.len() {
        0 => IdFault::Empty,
        length if length > PLAIN_ID_LIMIT => IdFault::Length,
        _ if !text.bytes().all(|byte| byte.is_ascii_graphic()) => IdFault::Alphabet,
        _ => return Ok(()),
    };
    Err(UnclassifiableId::new(text, text.len(), fault))
}

/// Why a KSUID could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KsuidError {
    /// More bytes were given than a KSUID has room for.
    #[error("a KSUID has room for 16 bytes of payload, {0} were given")]
    PayloadTooLong(usize),
    /// The moment is before 13 May 2014 or after 19 June 2150, the range of a KSUID's 32-bit seconds.
    #[error("the moment is outside the range of a KSUID")]
    OutOfRange,
}

/// Unix time of a KSUID's second zero.
const KSUID_EPOCH: i64 = 1_400_000_000;
const KSUID_PAYLOAD: usize = 16;

fn ksuid_of(at: DateTime<Utc>, payload: &[u8]) -> Result<ArrayString<KSUID_LENGTH>, KsuidError> {
    if payload.len() > KSUID_PAYLOAD {
        return Err(KsuidError::PayloadTooLong(payload.len()));
    }
    let seconds = u32::try_from(at.timestamp() - KSUID_EPOCH).map_err(|_| KsuidError::OutOfRange)?;
    // The library takes a whole payload or none, so a short one is filled with the bytes of a random id.
    let mut bytes: [u8; KSUID_PAYLOAD] = [0; KSUID_PAYLOAD];
    let random = ksuid::Ksuid::new_raw(seconds, None);
    bytes.copy_from_slice(&random.bytes()[4..]);
    bytes[..payload.len()].copy_from_slice(payload);
    Ok(keep(&ksuid::Ksuid::new_raw(seconds, Some(&bytes)).to_string()))
}

fn mint(residency: Residency) -> ArrayString<KSUID_LENGTH> {
    match residency {
        // `c`, 8 characters of base-36 milliseconds (9 from the year 2059 on), and 16 more: 25 in all.
        Residency::ControlPlane => keep(&cuid1::cuid()),
        Residency::RunOps => keep(&ksuid::Ksuid::from_seconds(None, None).to_string()),
    }
}

/// Copies a text whose length has been checked, or that was minted with a fixed length.
#[expect(clippy::expect_used, reason = "callers check the length first or mint texts of a fixed length")]
fn keep<const N: usize>(text: &str) -> ArrayString<N> {
    ArrayString::from(text).expect("ids are as long as their kind says")
}

/// Classification of a body known to be valid: the length alone decides.
fn residency_of_valid(body: &str) -> Residency {
    if body.len() == CUID_LENGTH { Residency::ControlPlane } else { Residency::RunOps }
}
