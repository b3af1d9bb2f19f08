//! Reading through to old runs: which databases are read for which id, and what a miss is.

use std::cell::RefCell;
use std::sync::Mutex;

use anyhow::{Result, ensure};
use store::{
    EnvironmentId, ErrorKind, Read, ReadThrough, Residency, Retention, RunFriendlyId, RunId, RunKey, Source, Split,
    StoreError, WaitpointId, find_run_through, read_through, resolve_token_through,
};
use tests::runs::{Stores, environment};
use tests::wired::{WiredStores, connections};
use tests::{Databases, LaggingPair, Side};

use crate::replica::{pause_caught_up, with_both_replicas};

use Reading::{Legacy, New, NewPrimary};

/// An application's retention, which keeps what it was asked and told.
#[derive(Debug)]
struct Kept {
    is_past: bool,
    asked: Mutex<Vec<(String, EnvironmentId)>>,
    told: Mutex<Vec<String>>,
}

impl Kept {
    fn new(is_past: bool) -> Self {
        Self { is_past, asked: Mutex::default(), told: Mutex::default() }
    }

    /// What was asked about since the last time.
    fn asked(&self) -> Vec<(String, EnvironmentId)> {
        std::mem::take(&mut self.asked.lock().expect("nobody panics with it"))
    }

    /// What was found on the control plane's replica since the last time.
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().expect("nobody panics with it"))
    }
}

impl Retention for Kept {
    fn is_past(&self, id: &str, environment: &EnvironmentId) -> bool {
        self.asked.lock().expect("nobody panics with it").push((id.to_owned(), environment.clone()));
        self.is_past
    }

    fn read_from_legacy(&self, id: &str) {
        self.told.lock().expect("nobody panics with it").push(id.to_owned());
    }
}

/// A read that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    New,
    Legacy,
    NewPrimary,
}

/// Reads in which only `has` finds something; `fails` fails. They note that they were made.
struct Reads {
    has: Option<Reading>,
    fails: Option<Reading>,
    made: RefCell<Vec<Reading>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Fault(Reading);

impl Reads {
    fn new(has: Option<Reading>, fails: Option<Reading>) -> Self {
        Self { has, fails, made: RefCell::default() }
    }

    async fn read(&self, reading: Reading) -> Result<Option<Reading>, Fault> {
        self.made.borrow_mut().push(reading);
        if self.fails == Some(reading) {
            return Err(Fault(reading));
        }
        Ok(self.has.filter(|has| *has == reading))
    }

    async fn through(&self, split: Split, kept: &Kept, id: &str) -> Result<ReadThrough<Reading>, Fault> {
        let (new, legacy) = (|| self.read(New), || self.read(Legacy));
        read_through(split, kept, id, &environment().id, new, legacy).await
    }

    async fn token(&self, split: Split, kept: &Kept, id: &str) -> Result<ReadThrough<Reading>, Fault> {
        let (new, legacy, primary) = (|| self.read(New), || self.read(Legacy), || self.read(NewPrimary));
        resolve_token_through(split, kept, id, &environment().id, new, legacy, primary).await
    }
}

/// Ids with the databases that are read for them on a split: run-ops alone, or both.
fn shapes() -> [(String, bool); 8] {
    [
        (RunId::mint(Residency::RunOps).to_string(), false),
        (RunId::mint(Residency::RunOps).friendly().to_string(), false),
        (RunId::mint(Residency::ControlPlane).to_string(), true),
        (RunId::mint(Residency::ControlPlane).friendly().to_string(), true),
        (WaitpointId::mint().friendly(), true),
        ("run_abcdefghijklmnopqrstu".to_owned(), true),
        ("of no known shape".to_owned(), true),
        (String::new(), true),
    ]
}

#[tokio::test]
async fn each_id_is_read_where_it_can_be_and_nowhere_else() {
    for split in [Split::Off, Split::On] {
        for (id, may_be_old) in shapes() {
            let both = split == Split::On && may_be_old;
            for is_past in [false, true] {
                for has in [None, Some(New), Some(Legacy)] {
                    let what = format!("{split:?}, {id:?}, in {has:?}, past retention: {is_past}");
                    let (kept, reads) = (Kept::new(is_past), Reads::new(has, None));
                    let answer = reads.through(split, &kept, &id).await.expect("no read fails");
                    let miss = if both && is_past { ReadThrough::PastRetention } else { ReadThrough::NotFound };
                    let expected = match has {
                        Some(New) => ReadThrough::Found { value: New, source: Source::New },
                        Some(Legacy) if both => ReadThrough::Found { value: Legacy, source: Source::LegacyReplica },
                        _ => miss,
                    };
                    assert_eq!(answer, expected, "{what}");
                    let made: &[_] = if both && has != Some(New) { &[New, Legacy] } else { &[New] };
                    assert_eq!(*reads.made.borrow(), made, "{what}");
                    let is_old = matches!(expected, ReadThrough::Found { source: Source::LegacyReplica, .. });
                    assert_eq!(kept.told(), Vec::from_iter(is_old.then(|| id.clone())), "{what}");
                    let is_asked = both && expected == miss;
                    assert_eq!(kept.asked().len(), usize::from(is_asked), "{what}: how often the retention was asked");
                    assert_eq!(expected.value().is_some(), made.last() == has.as_ref(), "{what}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_fault_of_a_read_is_handed_on_and_is_no_miss() {
    for split in [Split::Off, Split::On] {
        for (id, may_be_old) in shapes() {
            for fails in [New, Legacy, NewPrimary] {
                let what = format!("{split:?}, {id:?}, {fails:?} fails");
                let is_read = fails == New || (fails == Legacy && split == Split::On && may_be_old);
                let kept = Kept::new(true);
                let reads = Reads::new(None, Some(fails));
                let answer = reads.through(split, &kept, &id).await;
                assert_eq!(answer.err(), is_read.then_some(Fault(fails)), "{what}");
                if is_read {
                    assert_eq!(reads.made.borrow().last(), Some(&fails), "{what}: nothing is read after a fault");
                    assert_eq!(kept.asked(), [], "{what}: a fault says nothing about retention");
                }

                let reads = Reads::new(None, Some(fails));
                let answer = reads.token(split, &kept, &id).await;
                let is_read = is_read || fails == NewPrimary;
                assert_eq!(answer.err(), is_read.then_some(Fault(fails)), "{what}, as a token");
            }
        }
    }
}

#[tokio::test]
async fn a_fresh_token_is_looked_for_on_the_run_ops_primary_last() {
    for split in [Split::Off, Split::On] {
        for (id, may_be_old) in shapes() {
            let both = split == Split::On && may_be_old;
            for has in [None, Some(New), Some(Legacy), Some(NewPrimary)] {
                let what = format!("{split:?}, {id:?}, in {has:?}");
                let (kept, reads) = (Kept::new(true), Reads::new(has, None));
                let answer = reads.token(split, &kept, &id).await.expect("no read fails");
                let miss = if both { ReadThrough::PastRetention } else { ReadThrough::NotFound };
                let expected = match has {
                    Some(Legacy) if both => ReadThrough::Found { value: Legacy, source: Source::LegacyReplica },
                    None | Some(Legacy) => miss,
                    Some(value) => ReadThrough::Found { value, source: Source::New },
                };
                assert_eq!(answer, expected, "{what}");
                let in_turn: &[_] = if both { &[New, Legacy, NewPrimary] } else { &[New, NewPrimary] };
                let found_at = in_turn.iter().position(|reading| Some(*reading) == has);
                let made = &in_turn[..found_at.map_or(in_turn.len(), |at| at + 1)];
                assert_eq!(*reads.made.borrow(), made, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_run_is_found_through_in_its_environment_wherever_it_lives() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let is_split = home.store().residencies().len() == 2;
        let is_old = is_split && home.residency() == Residency::ControlPlane;
        let source = if is_old { Source::LegacyReplica } else { Source::New };
        let kept = Kept::new(true);
        let (store, here) = (home.store().as_ref(), &home.environment().id);
        let run = home.create().await?.id;
        let stored = home.run(&run).await?;
        for key in [RunKey::Id(run), RunKey::Friendly(run.friendly())] {
            for read in [Read::Primary, Read::Replica] {
                let found = find_run_through(store, &kept, key, here, read).await?;
                let value = stored.clone();
                assert_eq!(found, ReadThrough::Found { value, source }, "{home}, {key:?}, {read:?}");
                let id = if key == RunKey::Id(run) { run.to_string() } else { run.friendly().to_string() };
                assert_eq!(kept.told(), Vec::from_iter(is_old.then_some(id)), "{home}, {key:?}, {read:?}");
            }
        }
        assert_eq!(kept.asked(), [], "{home}: nothing was missing");

        // Of another tenant, and never there.
        let other = environment().id;
        for (key, within) in [(run, &other), (RunId::mint(home.residency()), here)] {
            for is_past in [false, true] {
                let kept = Kept::new(is_past);
                let missed = find_run_through(store, &kept, key.into(), within, Read::Primary).await?;
                let expected = if is_old && is_past { ReadThrough::PastRetention } else { ReadThrough::NotFound };
                assert_eq!(missed, expected, "{home}");
                let asked = is_old.then(|| (key.to_string(), within.clone()));
                assert_eq!(kept.asked(), Vec::from_iter(asked), "{home}");
                assert_eq!(kept.told(), Vec::<String>::new(), "{home}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_named_by_an_id_of_the_oldest_form_is_one_of_the_control_plane() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes().into_iter().filter(|home| home.side() == Side::ControlPlane) {
        let run = home.create().await?.id;
        let old = format!("{}{}", RunFriendlyId::PREFIX, &run.as_str()[..21]);
        home.sql(&format!("UPDATE task_run SET friendly_id = '{old}' WHERE id = '{run}'")).await?;
        let key: RunKey = old.parse()?;
        ensure!(matches!(key, RunKey::Unrouted(_)), "{old} is not of the oldest form");
        let kept = Kept::new(false);
        let found = find_run_through(home.store().as_ref(), &kept, key, &home.environment().id, Read::Primary).await?;
        let is_split = home.store().residencies().len() == 2;
        let source = if is_split { Source::LegacyReplica } else { Source::New };
        assert_eq!(found, ReadThrough::Found { value: home.run(&run).await?, source }, "{home}");
        assert_eq!(kept.told(), Vec::from_iter(is_split.then_some(old)), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn an_old_run_is_never_read_on_the_control_planes_primary() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let stores = with_both_replicas(&pair).await?;
    let mut before = Vec::new();
    for (_, home) in stores.homes() {
        before.push(home.create().await?.id);
    }
    pause_caught_up(&pair).await?;
    for ((wired, home), old) in stores.homes().into_iter().zip(before) {
        let is_old = home.store().residencies().len() == 2 && home.side() == Side::ControlPlane;
        let young = home.create().await?.id;
        let kept = Kept::new(false);
        let find = async |run: RunId, read| {
            pair.forget_questions();
            Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
            let environment = &old_environment(&home, &run).await?;
            let found = find_run_through(home.store().as_ref(), &kept, run.into(), environment, read).await?;
            let primaries = Side::ALL.map(|side| wired.proxy(side).recording().statements().len());
            let replicas = Side::ALL.map(|side| pair.asked_replica(side));
            anyhow::Ok((found.value().is_some(), primaries.iter().sum::<usize>(), replicas.iter().sum::<usize>()))
        };
        for read in [Read::Primary, Read::Replica] {
            let on_primary = usize::from(read == Read::Primary && !is_old);
            let (found, primaries, replicas) = find(old, read).await?;
            assert!(found, "{home}, {read:?}: it was there before the replicas stopped");
            assert_eq!((primaries, replicas), (on_primary, 1 - on_primary), "{home}, {read:?}: primaries, replicas");
            let (found, primaries, replicas) = find(young, read).await?;
            assert_eq!(found, on_primary == 1, "{home}, {read:?}: a replica that lags does not have it");
            assert_eq!((primaries, replicas), (on_primary, 1 - on_primary), "{home}, {read:?}: primaries, replicas");
        }
    }
    Ok(())
}

/// The environment that a run was made in, read past the store.
async fn old_environment(home: &tests::runs::Home<'_>, run: &RunId) -> Result<EnvironmentId> {
    let id: String = home.value(&format!("SELECT runtime_environment_id FROM task_run WHERE id = '{run}'")).await?;
    Ok(id.parse()?)
}

#[tokio::test]
async fn a_database_that_is_gone_is_no_miss() -> Result<()> {
    let databases = Databases::fresh().await?;
    let stores = WiredStores::over(&databases, connections(1)).await?;
    for (wired, home) in stores.homes() {
        let run = home.create().await?.id;
        let proxy = wired.proxy(home.side());
        proxy.refuse_connections(true);
        proxy.cut_all();
        let kept = Kept::new(true);
        let environment = &home.environment().id;
        let error = find_run_through(home.store().as_ref(), &kept, run.into(), environment, Read::Primary).await;
        proxy.refuse_connections(false);
        let error: StoreError = error.expect_err("nothing answers");
        assert_eq!(error.operation(), "find_run", "{home}: {error}");
        assert!(!matches!(error.kind(), ErrorKind::NotFound(_)), "{home}: {error}");
        assert_eq!(error.store(), Some(home.residency()), "{home}: {error}");
        assert_eq!((kept.asked(), kept.told()), (Vec::new(), Vec::new()), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_row_that_was_copied_to_run_ops_is_read_there_first() -> Result<()> {
    let databases = Databases::fresh().await?;
    let run = RunId::mint(Residency::ControlPlane);
    for side in Side::ALL {
        databases.sql(side, "CREATE TABLE run_note (run_id text PRIMARY KEY, note text NOT NULL)").await?;
        databases.sql(side, &format!("INSERT INTO run_note VALUES ('{run}', 'in {side}')")).await?;
    }
    let note = async |side: Side| {
        let sql = format!("SELECT note FROM run_note WHERE run_id = '{run}'");
        anyhow::Ok(databases.values::<String>(side, &sql).await?.pop())
    };
    let kept = Kept::new(false);
    let environment = environment().id;
    let read = || {
        let (new, legacy) = (|| note(Side::RunOps), || note(Side::ControlPlane));
        read_through(Split::On, &kept, run.as_str(), &environment, new, legacy)
    };
    let copy = format!("in {}", Side::RunOps);
    assert_eq!(read().await?, ReadThrough::Found { value: copy, source: Source::New });
    databases.sql(Side::RunOps, "DELETE FROM run_note").await?;
    let original = format!("in {}", Side::ControlPlane);
    assert_eq!(read().await?, ReadThrough::Found { value: original, source: Source::LegacyReplica });
    databases.sql(Side::ControlPlane, "DELETE FROM run_note").await?;
    assert_eq!(read().await?, ReadThrough::NotFound);
    databases.sql(Side::RunOps, "DROP TABLE run_note").await?;
    read().await.expect_err("a table that is not there is no miss");
    Ok(())
}
