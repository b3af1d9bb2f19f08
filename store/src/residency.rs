//! Which database a row lives in, told from the shape of its id.
//!
//! A run or a batch is born in one database and stays there for its whole life; the shape of its id says which:
//!
//! | body of the id | residency |
//! |---|---|
//! | 25 characters, `c` and then `0-9a-z` (a cuid) | [`Residency::ControlPlane`] |
//! | 27 characters of `0-9A-Za-z`, at most `aWgEPTl1tmebfsQzFP4bxwgy80V` (a KSUID) | [`Residency::RunOps`] |
//! | anything else | none: the text is unclassifiable |
//!
//! [`classify`] is the only place where that decision is taken. It looks at length, alphabet and upper bound, decodes
//! nothing and allocates nothing. A new id format is added here and old shapes keep their meaning.
//!
//! The KSUID format is the one of <https://github.com/segmentio/ksuid>: 20 bytes in base62, so that the greatest value
//! of 160 bits is the upper bound above.

use std::fmt;

/// The database in which a row lives.
///
/// The order of the variants carries no meaning; precedence and probe order are named in `routing`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Residency {
    /// The database that also holds organizations, projects, environments and workers. Its runs have cuids.
    ControlPlane,
    /// The dedicated database that holds run tables only. Its runs have KSUIDs.
    RunOps,
}

impl Residency {
    /// Every residency there is.
    pub const ALL: [Residency; 2] = [Residency::ControlPlane, Residency::RunOps];

    /// The name under which the database knows itself, in its identity row.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Residency::ControlPlane => "control_plane",
            Residency::RunOps => "run_ops",
        }
    }
}

impl fmt::Display for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Residency::ControlPlane => "control plane",
            Residency::RunOps => "run-ops",
        })
    }
}

/// An id whose shape tells where its row lives.
///
/// Implemented for run and batch ids, plain and friendly, and for nothing else: snapshots, edges, items, checkpoints,
/// tags and waitpoints have cuids in *both* databases, so their ids say nothing about their home. Routing by one of them
/// does not compile. This does:
///
/// ```
/// fn route(id: &impl store::Routable) -> store::Residency { id.residency() }
/// route(&store::RunId::mint(store::Residency::RunOps));
/// ```
///
/// And these do not:
///
/// ```compile_fail,E0277
/// fn route(id: &impl store::Routable) -> store::Residency { id.residency() }
/// route(&store::SnapshotId::mint());
/// ```
///
/// ```compile_fail,E0277
/// fn route(id: &impl store::Routable) -> store::Residency { id.residency() }
/// route(&store::WaitpointId::mint());
/// ```
pub trait Routable: sealed::Sealed {
    /// The database in which the row with this id lives.
    fn residency(&self) -> Residency;
}

pub(crate) mod sealed {
    /// Keeps [`super::Routable`] a closed list.
    pub trait Sealed {}
}

/// Number of characters of a cuid.
pub(crate) const CUID_LENGTH: usize = 25;
/// Number of characters of a KSUID.
pub(crate) const KSUID_LENGTH: usize = 27;
/// Number of characters of the body of the oldest friendly ids. They name rows of the control plane whose plain id has
/// another body, so they cannot be routed.
pub(crate) const OLD_FRIENDLY_LENGTH: usize = 21;
/// The text of 2^160 − 1, the greatest KSUID. Bytewise order of the text is the order of the values.
const KSUID_MAX: &[u8; KSUID_LENGTH] = b"aWgEPTl1tmebfsQzFP4bxwgy80V";

/// Tells where the run or batch named by `text` lives.
///
/// `text` is a plain id or a friendly one: if it contains `_`, the body is everything after the first one.
///
/// # Errors
/// [`UnclassifiableId`] if the body has neither shape; this includes the oldest friendly ids with 21 characters.
pub fn classify(text: &str) -> Result<Residency, UnclassifiableId> {
    // What has the shape of an id has no underscore to look for.
    shape(text).or_else(|_| {
        let body = body(text);
        shape(body).map_err(|fault| UnclassifiableId::new(text, body.len(), fault))
    })
}

/// Whether [`classify`] would answer.
#[must_use]
pub fn is_classifiable(text: &str) -> bool {
    shape(text).is_ok() || shape(body(text)).is_ok()
}

fn body(text: &str) -> &str {
    text.split_once('_').map_or(text, |(_, body)| body)
}

/// The decision itself, on the body alone.
pub(crate) fn shape(body: &str) -> Result<Residency, IdFault> {
    let bytes = body.as_bytes();
    // Arrays of a known length, which the compiler looks at many bytes at a time.
    if let Ok(cuid) = <&[u8; CUID_LENGTH]>::try_from(bytes) {
        let is_cuid = cuid[0] == b'c' && all(cuid, is_base36);
        if is_cuid { Ok(Residency::ControlPlane) } else { Err(IdFault::Alphabet) }
    } else if let Ok(ksuid) = <&[u8; KSUID_LENGTH]>::try_from(bytes) {
        if !all(ksuid, is_base62) {
            Err(IdFault::Alphabet)
        } else if ksuid > KSUID_MAX {
            Err(IdFault::OutOfRange)
        } else {
            Ok(Residency::RunOps)
        }
    } else if bytes.is_empty() {
        Err(IdFault::Empty)
    } else {
        Err(IdFault::Length)
    }
}

/// Whether `body` can be the body of one of the oldest friendly ids.
pub(crate) fn is_old_friendly_body(body: &str) -> bool {
    <&[u8; OLD_FRIENDLY_LENGTH]>::try_from(body.as_bytes()).is_ok_and(|body| all(body, is_base62))
}

fn is_base36(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'z')
}

fn is_base62(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

/// Looks at every byte, also after the first that fails: without a way out the compiler takes many at a time.
fn all<const N: usize>(bytes: &[u8; N], is_allowed: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |all, byte| all & is_allowed(*byte))
}

/// What is wrong with a text that was to be an id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdFault {
    /// There is no body.
    #[error("it is empty")]
    Empty,
    /// The length of the body fits no kind of id.
    #[error("no kind of id has that length")]
    Length,
    /// The length fits, a character does not.
    #[error("it has characters that ids of that length do not have")]
    Alphabet,
    /// A KSUID above the greatest one.
    #[error("it is greater than the greatest KSUID")]
    OutOfRange,
    /// A friendly id without the prefix of its kind, a plain id with one, or the prefix of another kind.
    #[error("it does not have the prefix of its kind")]
    Prefix,
    /// One of the oldest friendly ids where an id is needed that tells where its row lives.
    #[error("it is of the oldest form, which reads accept and writes do not")]
    Unrouted,
}

/// A text that cannot be taken for an id of the kind asked for.
///
/// `Display` and `Debug` show length and reason but not the text, which came from outside and may be anything.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a usable id ({body_length} bytes after the prefix): {fault}")]
pub struct UnclassifiableId {
    text: Box<str>,
    body_length: usize,
    fault: IdFault,
}

impl UnclassifiableId {
    /// Longest text that is kept.
    const KEPT: usize = 128;

    pub(crate) fn new(text: &str, body_length: usize, fault: IdFault) -> Self {
        let kept = text.floor_char_boundary(Self::KEPT);
        Self { text: text[..kept].into(), body_length, fault }
    }

    /// The text as it came, cut after 128 bytes.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Bytes of the part after the prefix.
    #[must_use]
    pub fn body_length(&self) -> usize {
        self.body_length
    }

    /// What is wrong with it.
    #[must_use]
    pub fn fault(&self) -> IdFault {
        self.fault
    }
}

impl fmt::Debug for UnclassifiableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnclassifiableId")
            .field("body_length", &self.body_length)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}
