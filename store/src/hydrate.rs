//! Puts together what lies in several places: relations of many parents, and snapshots with what belongs to them.
//!
//! The same code serves one database and several: it asks by [`Relations::related`], whose routing store knows which
//! database has a part in the question.

mod snapshots;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;

use futures_util::future::try_join;
use sea_orm::{EntityName, EntityTrait, FromQueryResult, QuerySelect, QueryTrait};

use crate::error::{ErrorKind, Phase, Result, StoreError};
use crate::read::Read;
use crate::relations::{
    Arity, Join, Key, Links, Lives, Load, Located, Parent, Place, Reference, RelatedQuery, RelatedRow, Relation,
    Relations, Shape, Source,
};
use crate::residency::{Residency, classify};
use crate::runs::CHUNK;

pub(crate) use snapshots::{current, since};

/// The operation, as errors name it.
pub(crate) const LOAD: &str = "load";

/// The relation `R`, read in the shape `T`. Made by [`Relation::of`].
pub struct Of<R, T> {
    relation: PhantomData<fn() -> (R, T)>,
}

impl<R, T> Of<R, T> {
    pub(crate) fn new() -> Self {
        Self { relation: PhantomData }
    }

    /// The same, and for each target what `nested` asks for: another relation, or a tuple of them. The levels are read
    /// one after the other, each for all targets at once.
    #[must_use]
    pub fn with<N>(self, nested: N) -> With<Self, N> {
        With { outer: self, nested }
    }
}

impl<R: Relation, T> fmt::Debug for Of<R, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Of({})", R::DECLARATION.name)
    }
}

/// A relation and relations of its targets. Made by [`Of::with`].
#[derive(Debug)]
pub struct With<L, N> {
    outer: L,
    nested: N,
}

/// What a parent gets of a relation whose targets can have relations of their own.
pub trait Targets: Send {
    /// A target.
    type Target: Send + Sync;
    /// The same with something beside each target.
    type With<U: Send>: Send;

    /// The targets, in their order.
    #[doc(hidden)]
    fn targets(&self) -> Vec<&Self::Target>;

    /// Puts one of `values` beside each target.
    #[doc(hidden)]
    fn beside<U: Send>(self, values: &mut impl Iterator<Item = U>) -> Self::With<U>;
}

impl<T: Send + Sync> Targets for Vec<T> {
    type Target = T;
    type With<U: Send> = Vec<(T, U)>;

    fn targets(&self) -> Vec<&T> {
        self.iter().collect()
    }

    fn beside<U: Send>(self, values: &mut impl Iterator<Item = U>) -> Vec<(T, U)> {
        self.into_iter().zip(values).collect()
    }
}

impl<T: Send + Sync> Targets for Option<T> {
    type Target = T;
    type With<U: Send> = Option<(T, U)>;

    fn targets(&self) -> Vec<&T> {
        self.iter().collect()
    }

    fn beside<U: Send>(self, values: &mut impl Iterator<Item = U>) -> Option<(T, U)> {
        // A parent without a target takes no value: the next one is another parent's.
        self.and_then(|row| Some((row, values.next()?)))
    }
}

impl<T: Send + Sync> Targets for Reference<T> {
    type Target = T;
    type With<U: Send> = Reference<(T, U)>;

    fn targets(&self) -> Vec<&T> {
        match self {
            Reference::Found(row) => vec![row],
            Reference::Unset | Reference::Dangling(_) => Vec::new(),
        }
    }

    fn beside<U: Send>(self, values: &mut impl Iterator<Item = U>) -> Reference<(T, U)> {
        match self {
            Reference::Unset => Reference::Unset,
            Reference::Found(row) => values.next().map_or(Reference::Unset, |value| Reference::Found((row, value))),
            Reference::Dangling(id) => Reference::Dangling(id),
        }
    }
}

impl<P, L, N> Load<P> for With<L, N>
where
    P: Sync,
    L: Load<P>,
    L::Value: Targets + Sync,
    N: Load<<L::Value as Targets>::Target>,
{
    type Value = <L::Value as Targets>::With<N::Value>;

    async fn load_for<S: Relations + ?Sized>(&self, store: &S, parents: &[&P], read: Read) -> Result<Vec<Self::Value>> {
        let outer = self.outer.load_for(store, parents, read).await?;
        let targets: Vec<_> = outer.iter().flat_map(Targets::targets).collect();
        let mut values = self.nested.load_for(store, &targets, read).await?.into_iter();
        Ok(outer.into_iter().map(|value| value.beside(&mut values)).collect())
    }
}

/// Several at the same time.
macro_rules! tuples {
    ($(($($load:ident $part:ident),+);)*) => {
        $(
            impl<P: Sync, $($load: Load<P>),+> Load<P> for ($($load,)+) {
                type Value = ($($load::Value,)+);

                async fn load_for<S: Relations + ?Sized>(
                    &self,
                    store: &S,
                    parents: &[&P],
                    read: Read,
                ) -> Result<Vec<Self::Value>> {
                    let ($($part,)+) = self;
                    let tuples!(@pattern $($part)+) = tuples!(@join store, parents, read, $($part)+).await?;
                    $(let mut $part = $part.into_iter();)+
                    Ok(std::iter::from_fn(move || Some(($($part.next()?,)+))).collect())
                }
            }
        )*
    };
    (@pattern $part:ident) => { $part };
    (@pattern $part:ident $($rest:ident)+) => { ($part, tuples!(@pattern $($rest)+)) };
    (@join $store:ident, $parents:ident, $read:ident, $part:ident) => {
        $part.load_for($store, $parents, $read)
    };
    (@join $store:ident, $parents:ident, $read:ident, $part:ident $($rest:ident)+) => {
        try_join($part.load_for($store, $parents, $read), tuples!(@join $store, $parents, $read, $($rest)+))
    };
}

tuples! {
    (A a, B b);
    (A a, B b, C c);
    (A a, B b, C c, D d);
    (A a, B b, C c, D d, E e);
    (A a, B b, C c, D d, E e, F f);
    (A a, B b, C c, D d, E e, F f, G g);
    (A a, B b, C c, D d, E e, F f, G g, H h);
}

/// Reads the relation `R` of many parents: one value for each, in their order.
pub(crate) async fn hydrate<P, R, T, S>(
    store: &S,
    parents: &[&P],
    read: Read,
) -> Result<Vec<<R::Arity as Arity>::Value<T>>>
where
    P: Parent<R> + Sync,
    R: Relation,
    T: Shape<R::Target>,
    S: Relations + ?Sized,
{
    let declaration = R::DECLARATION;
    let refuse = |kind| StoreError::new(LOAD, None, kind);
    let own: Vec<Option<Key>> = own_keys::<P, R>(parents).map_err(refuse)?;

    // The keys of each parent's targets.
    let wanted: Vec<Vec<Key>> = match declaration.join {
        Join::Names | Join::NamedBy(_) => own.into_iter().map(Vec::from_iter).collect(),
        Join::Linked(links) => {
            let query = query(Source::Links(links), own.iter().flatten());
            let found = Found::new(ask(store, &query, read).await?);
            let linked = own.iter().map(|key| found.linked(key.as_ref(), links, declaration.lives));
            linked.collect::<Result<_, _>>().map_err(refuse)?
        }
    };

    let column = match declaration.join {
        Join::NamedBy(column) => column,
        Join::Names | Join::Linked(_) => "id",
    };
    let rows = Box::new(T::select_cols(R::Target::find().select_only()).into_query());
    let source = Source::Rows { rows, table: R::Target::default().table_name(), column };
    let mut found = ask(store, &query(source.clone(), wanted.iter().flatten()), read).await?;
    if R::Arity::REQUIRED && store.may_lag(read) {
        // A replica may not have it yet. What nobody has is an error, so it is not said before the primary was asked.
        let known: HashSet<&str> = found.iter().map(|row| row.key.as_str()).collect();
        let missing = query(source, wanted.iter().flatten().filter(|key| !known.contains(key.text.as_str())));
        let again = ask(store, &missing, Read::Primary).await?;
        found.extend(again);
    }
    let found = Found::new(found);

    let each = parents.iter().zip(&wanted).map(|(parent, keys)| {
        let rows: Vec<T> = found.decoded(keys)?;
        R::Arity::value(parent.id(), parent.key(), rows).map_err(refuse)
    });
    each.collect()
}

/// The key that each parent brings. Fails where the relation cannot be followed from one of them.
fn own_keys<P: Parent<R>, R: Relation>(parents: &[&P]) -> Result<Vec<Option<Key>>, ErrorKind> {
    let declaration = R::DECLARATION;
    let own_key = |parent: &&P| {
        let home = Located::home(*parent)?;
        if declaration.lives == Lives::ControlPlane && home != Some(Residency::ControlPlane) {
            return Err(ErrorKind::ControlPlaneOnlyRelation { relation: declaration.name });
        }
        let Some(key) = parent.key() else { return Ok(None) };
        let place = match (declaration.join, declaration.lives) {
            // Links lie with the parent, whose home is unknown if it is a waitpoint.
            (Join::Linked(_), _) | (_, Lives::Beside | Lives::BesideLink | Lives::ControlPlane) => Place::of(home),
            (_, Lives::Anywhere) => Place::Anywhere,
            (_, Lives::ByShape) => Place::In(classify(key)?),
        };
        Ok(Some(Key { text: key.to_owned(), place }))
    };
    parents.iter().map(own_key).collect()
}

/// A question about some keys, each once.
fn query<'a>(source: Source, keys: impl Iterator<Item = &'a Key>) -> RelatedQuery {
    let mut seen = HashSet::new();
    let keys = keys.filter(|key| seen.insert(*key)).cloned().collect();
    RelatedQuery { operation: LOAD, source, keys, chunk: CHUNK }
}

async fn ask<S: Relations + ?Sized>(store: &S, query: &RelatedQuery, read: Read) -> Result<Vec<RelatedRow>> {
    if query.keys.is_empty() { Ok(Vec::new()) } else { store.related(query, read).await }
}

/// Rows by their key.
struct Found {
    rows: HashMap<String, Vec<RelatedRow>>,
}

impl Found {
    fn new(found: Vec<RelatedRow>) -> Self {
        let mut rows: HashMap<String, Vec<RelatedRow>> = HashMap::with_capacity(found.len());
        for row in found {
            rows.entry(row.key.clone()).or_default().push(row);
        }
        Self { rows }
    }

    /// The rows of some keys by id, each id once: rows come in the order of precedence.
    fn of<'a>(&'a self, keys: impl IntoIterator<Item = &'a Key>) -> Vec<&'a RelatedRow> {
        let mut seen = HashSet::new();
        let rows = keys.into_iter().flat_map(|key| {
            let rows = self.rows.get(&key.text).into_iter().flatten();
            rows.filter(|row| key.place.includes(row.residency))
        });
        let mut rows: Vec<&RelatedRow> = rows.filter(|row| seen.insert(row.id.as_str())).collect();
        rows.sort_by(|left, right| left.id.cmp(&right.id));
        rows
    }

    /// The keys of the targets that a parent is linked with.
    fn linked(&self, key: Option<&Key>, links: Links, lives: Lives) -> Result<Vec<Key>, ErrorKind> {
        let at_most = match links {
            Links::ConnectedRuns { at_most } => at_most as usize,
            Links::CompletedWaitpoints | Links::CompletedSnapshots | Links::ConnectedWaitpoints => usize::MAX,
        };
        let linked = self.of(key).into_iter().take(at_most).map(|link| {
            let place = match lives {
                Lives::Anywhere => Place::Anywhere,
                Lives::ByShape => Place::In(classify(&link.id)?),
                Lives::Beside | Lives::BesideLink | Lives::ControlPlane => Place::In(link.residency),
            };
            Ok(Key { text: link.id.clone(), place })
        });
        linked.collect()
    }

    /// The rows of some keys, each read anew: no parent sees what another one does to its value.
    fn decoded<T: FromQueryResult>(&self, keys: &[Key]) -> Result<Vec<T>> {
        self.of(keys).into_iter().map(|row| decode(LOAD, row, "")).collect()
    }
}

fn decode<T: FromQueryResult>(operation: &'static str, row: &RelatedRow, prefix: &str) -> Result<T> {
    T::from_query_result(&row.row, prefix)
        .map_err(|error| StoreError::database(operation, row.residency, Phase::Uncommitted, &error))
}
