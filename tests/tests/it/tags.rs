//! Waitpoint tags.

use std::sync::Arc;

use anyhow::Result;
use store::{Constraint, ErrorKind, InputProblem, MAX_INDEXED_TEXT, NewWaitpointTag, Residency, WaitpointTagId};
use tests::runs::{Home, Stores};
use tests::wired::{WiredStores, connections};
use tests::{Databases, Side};

fn new_tag(home: &Home<'_>, name: &str) -> NewWaitpointTag {
    NewWaitpointTag {
        id: None,
        name: name.to_owned(),
        environment: home.environment().id.clone(),
        project: home.environment().project.clone(),
    }
}

#[tokio::test]
async fn a_tag_is_made_once_and_then_returned_unchanged() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let id = WaitpointTagId::mint();
        let first = NewWaitpointTag { id: Some(id.clone()), ..new_tag(&home, "Ünïcödé 🦀") };
        let made = store.upsert_waitpoint_tag(first, home.residency()).await?;
        assert_eq!((made.id.as_str(), made.name.as_str()), (id.as_str(), "Ünïcödé 🦀"), "{home}");

        let other_project = NewWaitpointTag { project: "another".parse()?, ..new_tag(&home, "Ünïcödé 🦀") };
        let again = store.upsert_waitpoint_tag(other_project, home.residency()).await?;
        assert_eq!(again, made, "{home}: the one that is there");
        let count: i64 = home
            .value(&format!("SELECT count(*) FROM waitpoint_tag WHERE environment_id = '{}'", home.environment().id))
            .await?;
        assert_eq!(count, 1, "{home}");
        let other = store.upsert_waitpoint_tag(new_tag(&home, "other"), home.residency()).await?;
        assert_ne!(other.id, made.id, "{home}");
        let elsewhere: Vec<String> = stores
            .databases()
            .values(
                home.side().other(),
                &format!("SELECT id FROM waitpoint_tag WHERE environment_id = '{}'", home.environment().id),
            )
            .await?;
        assert_eq!(elsewhere, [""; 0], "{home}: the other database has nothing of it");
    }
    Ok(())
}

#[tokio::test]
async fn callers_at_the_same_moment_get_the_same_tag() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (store, tag, at) = (Arc::clone(home.store()), new_tag(&home, "race"), home.residency());
            calls.spawn(async move { store.upsert_waitpoint_tag(tag, at).await });
        }
        let made = calls.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
        assert!(made.iter().all(|tag| *tag == made[0]), "{home}: {made:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_tag_that_cannot_be_stored_is_refused_alike_everywhere() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let long = "x".repeat(MAX_INDEXED_TEXT + 1);
        let cases = [
            ("", InputProblem::Empty),
            ("a\0b", InputProblem::NulByte),
            (long.as_str(), InputProblem::TooLarge { limit: MAX_INDEXED_TEXT }),
        ];
        for (name, problem) in cases {
            let refused = home.store().upsert_waitpoint_tag(new_tag(&home, name), home.residency()).await;
            let kind = ErrorKind::InvalidInput { field: "name", problem };
            assert_eq!(refused.expect_err("the name cannot be stored").kind(), &kind, "{home}");
        }
        let longest = "x".repeat(MAX_INDEXED_TEXT);
        home.store().upsert_waitpoint_tag(new_tag(&home, &longest), home.residency()).await?;

        let id = Some(WaitpointTagId::mint());
        let first = NewWaitpointTag { id: id.clone(), ..new_tag(&home, "one") };
        home.store().upsert_waitpoint_tag(first, home.residency()).await?;
        let second = NewWaitpointTag { id, ..new_tag(&home, "two") };
        let taken = home.store().upsert_waitpoint_tag(second, home.residency()).await.expect_err("the id is taken");
        assert_eq!(taken.kind(), &ErrorKind::UniqueViolation(Some(Constraint::WaitpointTagPkey)), "{home}");
    }
    let [.., single] = stores.homes();
    let refused = single.store().upsert_waitpoint_tag(new_tag(&single, "t"), Residency::RunOps).await;
    let wrong = ErrorKind::WrongStore { id: Residency::RunOps, store: Residency::ControlPlane };
    assert_eq!(refused.expect_err("there is no such database").kind(), &wrong);
    Ok(())
}

#[tokio::test]
async fn a_tag_costs_one_statement_whether_it_is_there_or_not() -> Result<()> {
    let databases = Databases::fresh().await?;
    let stores = WiredStores::over(&databases, connections(1)).await?;
    for (wired, home) in stores.homes() {
        for (once_prepared, name) in [(false, "a"), (true, "b"), (true, "b")] {
            Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
            home.store().upsert_waitpoint_tag(new_tag(&home, name), home.residency()).await?;
            if once_prepared {
                wired.proxy(home.side()).recording().check_statements(1);
                wired.proxy(home.side()).recording().check_round_trips(1);
                wired.proxy(home.side().other()).recording().check_statements(0);
            }
        }
    }
    Ok(())
}
