//! The rules by which a completion is for a database, as tables.

use anyhow::Result;
use store::guard::decide;
use store::{
    BatchId, CompletionContext, CompletionFacts, CompletionOf, CompletionPin, CompletionRoute, GuardDecision,
    Residency, RunId, Split, WaitpointId,
};

use CompletionPin::{ControlPlaneParent, ControlPlaneTree, CrossTreeKey};
use Residency::{ControlPlane, RunOps};

#[test]
fn a_completion_is_for_the_database_of_the_first_rule_that_fits() -> Result<()> {
    let cuid = WaitpointId::mint();
    let ksuid: WaitpointId = RunId::mint(RunOps).as_str().parse()?;
    let unknown: WaitpointId = "waitpoint-of-no-known-shape".parse()?;
    let (here, there) = (Some(RunId::mint(ControlPlane)), Some(RunId::mint(RunOps)));
    let cases = [
        // Without a split nobody looks at the id.
        (Split::Off, &cuid, None, None, ControlPlane, ControlPlane),
        (Split::Off, &ksuid, None, None, ControlPlane, ControlPlane),
        (Split::Off, &unknown, None, there, ControlPlane, ControlPlane),
        (Split::Off, &ksuid, Some(CrossTreeKey), there, ControlPlane, ControlPlane),
        // A pin forces the control plane, and the shape is told nevertheless.
        (Split::On, &ksuid, Some(ControlPlaneTree), None, ControlPlane, RunOps),
        (Split::On, &ksuid, Some(CrossTreeKey), None, ControlPlane, RunOps),
        (Split::On, &ksuid, Some(ControlPlaneParent), there, ControlPlane, RunOps),
        (Split::On, &cuid, Some(ControlPlaneTree), there, ControlPlane, ControlPlane),
        (Split::On, &unknown, Some(ControlPlaneTree), None, ControlPlane, ControlPlane),
        // Beside a run.
        (Split::On, &cuid, None, there, RunOps, ControlPlane),
        (Split::On, &ksuid, None, here, ControlPlane, RunOps),
        // By the shape; one that is not known is the control plane's.
        (Split::On, &cuid, None, None, ControlPlane, ControlPlane),
        (Split::On, &ksuid, None, None, RunOps, RunOps),
        (Split::On, &unknown, None, None, ControlPlane, ControlPlane),
    ];
    for (split, id, pin, beside, store, shape) in cases {
        for route in CompletionRoute::ALL {
            let context = CompletionContext { route, pin, beside };
            let decision = decide(split, CompletionOf::Waitpoint(id), &context);
            assert_eq!(decision, GuardDecision { store, shape, route, pin }, "{split:?}, {id}, {context:?}");
        }
    }
    Ok(())
}

#[test]
fn a_batch_is_at_home_where_its_id_says() {
    let context = CompletionContext::of(CompletionRoute::Run);
    for (split, id, expected) in [
        (Split::Off, BatchId::mint(RunOps), ControlPlane),
        (Split::On, BatchId::mint(RunOps), RunOps),
        (Split::On, BatchId::mint(ControlPlane), ControlPlane),
    ] {
        let decision = decide(split, CompletionOf::Batch(&id), &context);
        assert_eq!((decision.store, decision.shape), (expected, expected), "{split:?}, {id}");
    }
}

#[test]
fn the_first_fact_that_pins_is_the_pin() {
    let cases = [
        (None, false, false, None),
        (Some(RunOps), false, false, None),
        (Some(ControlPlane), false, false, Some(ControlPlaneTree)),
        (Some(ControlPlane), true, true, Some(ControlPlaneTree)),
        (Some(RunOps), true, true, Some(CrossTreeKey)),
        (None, true, true, Some(CrossTreeKey)),
        (None, true, false, Some(CrossTreeKey)),
        (Some(RunOps), false, true, Some(ControlPlaneParent)),
        (None, false, true, Some(ControlPlaneParent)),
    ];
    for (tree_owner, is_cross_tree_key, has_control_plane_parent, expected) in cases {
        let facts = CompletionFacts { tree_owner, is_cross_tree_key, has_control_plane_parent };
        assert_eq!(CompletionPin::of(&facts), expected, "{facts:?}");
    }
}

#[test]
fn every_route_is_listed_once() {
    let place = |route| match route {
        CompletionRoute::Manual => 0,
        CompletionRoute::DateTime => 1,
        CompletionRoute::ResumeToken => 2,
        CompletionRoute::IdempotencyReuse => 3,
        CompletionRoute::Run => 4,
    };
    assert_eq!(CompletionRoute::ALL.map(place), [0, 1, 2, 3, 4], "add the new route to `CompletionRoute::ALL`");
}
