//! The same calls, whose futures are dropped within a process that goes on: at a statement, and at any await.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use tests::protocol::TakenOn;
use tests::proxy::is_identity;
use tests::runs::Home;
use tests::wired::{Wired, WiredStores};
use tests::{Databases, Mode, Side};
use tokio::select;

use super::cases::Subject;
use crate::races::{check_in_order, connections_in, poll_at_most};

const SUBJECTS: [Subject; 9] = [
    Subject::Block,
    Subject::BlockOnDone,
    Subject::BlockByBatch,
    Subject::RunWaitpoint,
    Subject::Complete,
    Subject::Resume,
    Subject::Requeue,
    Subject::EndBatch,
    Subject::Create,
];

/// The three homes; every call has an environment of its own.
fn homes<'a>(stores: &'a WiredStores<'a>) -> [(&'a Wired<'a>, impl Fn() -> Home<'a>); 3] {
    [0, 1, 2].map(|n| (stores.homes()[n].0, move || stores.homes()[n].1.clone()))
}

/// Waits until both connections of a store are in order, to each of its databases.
async fn check_stores_in_order(wired: &Wired<'_>, home: &Home<'_>) -> Result<()> {
    check_in_order(wired, home).await?;
    if home.store().residencies().len() > 1 {
        check_in_order(wired, &home.on(home.side().other())).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_protocol_that_is_left_at_a_statement_is_completed_by_its_repetition() -> Result<()> {
    let databases = Databases::fresh().await?;
    for mode in Mode::ALL {
        let stores = WiredStores::over(&databases, connections_in(mode, 2)).await?;
        for (wired, home) in homes(&stores) {
            for subject in SUBJECTS {
                leave_at_each_statement(&databases, wired, &home, subject).await.context(mode.to_string())?;
            }
        }
    }
    Ok(())
}

async fn leave_at_each_statement<'a>(
    databases: &Databases,
    wired: &Wired<'_>,
    home: &impl Fn() -> Home<'a>,
    subject: Subject,
) -> Result<()> {
    let expected = undisturbed(databases, &home(), subject).await?;
    // A second time, for by now everything is prepared.
    let here = home();
    let case = subject.prepare(&here).await?;
    Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
    let for_others = case.protocol.carry_out(here.store().as_ref(), &mut TakenOn::new(), |_| ()).await?;
    let counts = Side::ALL.map(|side| wired.proxy(side).recording().statements().len());
    case.settle(&here, &for_others).await?;

    for (side, count) in Side::ALL.into_iter().zip(counts) {
        for nth in 1..=count {
            let home = home();
            let what = || format!("{home}: {subject:?}, left at statement {nth} on {side}");
            let case = subject.prepare(&home).await?;
            let mut taken_on = TakenOn::new();
            let seen = AtomicUsize::new(0);
            let gate =
                wired.proxy(side).hold(move |sql| !is_identity(sql) && seen.fetch_add(1, Ordering::SeqCst) + 1 == nth);
            select! {
                done = case.protocol.carry_out(home.store().as_ref(), &mut taken_on, |_| ()) => panic!("{}: it came to its end: {done:?}", what()),
                held = gate.held(1) => held.with_context(what)?,
            }
            gate.release();
            check_stores_in_order(wired, &home.elsewhere()).await.with_context(what)?;
            let for_others =
                case.protocol.carry_out(home.store().as_ref(), &mut taken_on, |_| ()).await.with_context(what)?;
            case.settle(&home, &for_others).await?;
            assert_eq!(case.dump(databases, &for_others).await?, expected, "{}", what());
        }
    }
    Ok(())
}

/// What a call leaves that nobody disturbs.
async fn undisturbed(databases: &Databases, home: &Home<'_>, subject: Subject) -> Result<String> {
    let case = subject.prepare(home).await?;
    let for_others = case.protocol.carry_out(home.store().as_ref(), &mut TakenOn::new(), |_| ()).await?;
    case.settle(home, &for_others).await?;
    case.dump(databases, &for_others).await
}

#[tokio::test]
async fn a_protocol_that_is_left_at_any_await_is_completed_by_its_repetition() -> Result<()> {
    let databases = Databases::fresh().await?;
    let mut interrupted = 0;
    for mode in Mode::ALL {
        let stores = WiredStores::over(&databases, connections_in(mode, 2)).await?;
        for (wired, home) in homes(&stores) {
            for subject in SUBJECTS {
                let left = leave_at_each_await(&databases, wired, &home, subject).await;
                interrupted += left.context(mode.to_string())?;
            }
        }
    }
    // How often a call waits is a matter of luck: an answer may be there before it is asked for.
    assert!(interrupted > 0, "no call ever waited");
    Ok(())
}

/// Returns how often a call was interrupted.
async fn leave_at_each_await<'a>(
    databases: &Databases,
    wired: &Wired<'_>,
    home: &impl Fn() -> Home<'a>,
    subject: Subject,
) -> Result<usize> {
    let expected = undisturbed(databases, &home(), subject).await?;
    let mut interrupted = 0;
    for polls in 0.. {
        let home = home();
        let what = || format!("{home}: {subject:?}, left after {polls} polls");
        ensure!(polls < 1_000, "{}: it does not come to an end", what());
        let case = subject.prepare(&home).await?;
        let mut taken_on = TakenOn::new();
        let is_done = {
            let call = case.protocol.carry_out(home.store().as_ref(), &mut taken_on, |_| ());
            poll_at_most(call, polls, true).await.transpose().with_context(what)?.is_some()
        };
        check_stores_in_order(wired, &home.elsewhere()).await.with_context(what)?;
        let for_others =
            case.protocol.carry_out(home.store().as_ref(), &mut taken_on, |_| ()).await.with_context(what)?;
        case.settle(&home, &for_others).await?;
        // A block that came to its end and is repeated before it is carried on is one block.
        assert_eq!(case.dump(databases, &for_others).await?, expected, "{}", what());
        if is_done {
            break;
        }
        interrupted += usize::from(polls > 0);
    }
    Ok(interrupted)
}
