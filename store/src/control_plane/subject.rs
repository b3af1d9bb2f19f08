//! What an answer is about: the rows it was made of, whose changes make it stale.

use std::fmt;

/// A row of the control plane, by what identifies it to those who change it.
///
/// It is what an entry of the cache depends on, what an invalidation names, and what a notification carries.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Subject {
    pub(crate) kind: SubjectKind,
    /// The row's id; of a flag its key.
    pub(crate) id: Box<str>,
}

/// The tables whose rows answers are made of. The letter is how a notification names one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum SubjectKind {
    Environment,
    Project,
    Organization,
    Member,
    User,
    Worker,
    WorkerTask,
    /// A deployment, by the worker it deploys: that is what answers know of it.
    Deployment,
    Flag,
}

impl SubjectKind {
    /// Every kind there is.
    pub(crate) const ALL: [SubjectKind; 9] = [
        SubjectKind::Environment,
        SubjectKind::Project,
        SubjectKind::Organization,
        SubjectKind::Member,
        SubjectKind::User,
        SubjectKind::Worker,
        SubjectKind::WorkerTask,
        SubjectKind::Deployment,
        SubjectKind::Flag,
    ];

    /// The letter by which notifications name the kind. The migration that makes the triggers has the same ones.
    pub(crate) fn letter(self) -> u8 {
        match self {
            SubjectKind::Environment => b'e',
            SubjectKind::Project => b'p',
            SubjectKind::Organization => b'o',
            SubjectKind::Member => b'm',
            SubjectKind::User => b'u',
            SubjectKind::Worker => b'w',
            SubjectKind::WorkerTask => b't',
            SubjectKind::Deployment => b'd',
            SubjectKind::Flag => b'f',
        }
    }
}

impl Subject {
    pub(crate) fn new(kind: SubjectKind, id: &str) -> Self {
        Self { kind, id: id.into() }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.kind, self.id)
    }
}

/// What the control plane says to a question, and of which rows it says it.
///
/// That there is no such thing is an answer like any other: it depends on the rows that would have to change for it.
#[derive(Clone, Debug)]
pub(crate) struct Answer<T> {
    /// `None`: it was looked for and is not there.
    pub(crate) value: Option<T>,
    pub(crate) about: Vec<Subject>,
}

impl<T> Answer<T> {
    /// The same answer, with something made of what there is.
    pub(crate) fn map<U>(self, make: impl FnOnce(T) -> U) -> Answer<U> {
        Answer { value: self.value.map(make), about: self.about }
    }
}
