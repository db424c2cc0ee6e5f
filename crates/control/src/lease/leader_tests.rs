//! Each rule of the leader's side, and invariant 25 as a property over clock rates and delays.

use outlast_types::Profile;
use proptest::prelude::*;

use super::*;
use crate::lease::AgentLease;

const GOOD: LeaderHealth = LeaderHealth { good: true };
const ILL: LeaderHealth = LeaderHealth { good: false };
/// D(1+ε)+δ of the lan profile.
const G: u64 = 4_340;

fn node(n: usize) -> NodeId {
    NodeId::new(format!("n{n}")).expect("valid")
}

fn leases(count: usize) -> LeaderLeases {
    let nodes = (0..count).map(|n| (node(n), RegistrationId(n as u64)));
    LeaderLeases::new(Timers::of(Profile::Lan), 5, BootTime(0), nodes)
}

fn heartbeat(n: usize, seq: u64, at: u64) -> HeartbeatReceipt {
    HeartbeatReceipt { node: node(n), registration: RegistrationId(n as u64), seq, received_at: BootTime(at) }
}

/// Ticks every 100 ms and gathers what is said.
fn run(leases: &mut LeaderLeases, from: u64, to: u64, health: LeaderHealth) -> Vec<(u64, LeaseEvent)> {
    let ticks = (from..=to).step_by(100);
    ticks.flat_map(|at| leases.tick(BootTime(at), health).into_iter().map(move |event| (at, event))).collect()
}

fn lost(events: &[(u64, LeaseEvent)]) -> Vec<u64> {
    events.iter().filter(|(_, event)| matches!(event, LeaseEvent::Lost { .. })).map(|(at, _)| *at).collect()
}

#[test]
fn l1_a_confirmed_heartbeat_extends_from_its_receipt_and_names_the_newest_number() {
    let mut leases = leases(1);
    let grants = leases.confirmed(&[heartbeat(0, 4, 1_000), heartbeat(0, 3, 900), heartbeat(7, 1, 1_000)]);
    assert_eq!(grants, [Grant { node: node(0), registration: RegistrationId(0), ack_seq: 4 }]);
    assert_eq!(leases.expiry(&node(0)), Some(BootTime(1_000 + G)));
    leases.confirmed(&[heartbeat(0, 5, 500)]);
    assert_eq!(leases.expiry(&node(0)), Some(BootTime(1_000 + G)), "a late one never shortens");
}

#[test]
fn l1_another_registration_gets_nothing() {
    let mut leases = leases(1);
    let stale = HeartbeatReceipt { registration: RegistrationId(99), ..heartbeat(0, 1, 100) };
    assert_eq!(leases.confirmed(&[stale]), []);
}

#[test]
fn l2_invariant_26_nobody_is_lost_before_one_grace_of_a_new_incarnation() {
    let mut leases = leases(2);
    let events = run(&mut leases, 0, 10_000, GOOD);
    assert_eq!(lost(&events), [4_400, 4_400]);
}

#[test]
fn l2_suspicion_comes_at_half_the_lease_and_goes_with_a_heartbeat() {
    let mut leases = leases(1);
    assert_eq!(run(&mut leases, 0, 2_200, GOOD), [(2_100, LeaseEvent::Suspect(node(0)))]);
    assert_eq!(leases.condition(&node(0)), Some(LeaseCondition::Suspect));
    leases.confirmed(&[heartbeat(0, 1, 2_200)]);
    assert_eq!(leases.tick(BootTime(2_300), GOOD), [LeaseEvent::Ready(node(0))]);
    assert_eq!(leases.condition(&node(0)), Some(LeaseCondition::Ready));
}

#[test]
fn l3_a_stall_of_the_leader_itself_expires_nobody() {
    let mut leases = leases(2);
    run(&mut leases, 0, 1_000, GOOD);
    let events = leases.tick(BootTime(61_000), GOOD);
    assert_eq!(events, [LeaseEvent::Stalled { gap_ms: 60_000 }]);
    assert_eq!(lost(&run(&mut leases, 61_100, 70_000, GOOD)), [64_400, 64_400]);
}

#[test]
fn l3_while_there_is_no_quorum_no_lease_runs() {
    let mut leases = leases(2);
    run(&mut leases, 0, 1_000, GOOD);
    for at in (1_100..=61_000).step_by(100) {
        leases.hold(BootTime(at));
    }
    assert_eq!(leases.condition(&node(0)), Some(LeaseCondition::Ready));
    leases.confirmed(&[heartbeat(0, 1, 61_500)]);
    assert_eq!(
        lost(&run(&mut leases, 61_100, 65_000, GOOD)),
        [64_400],
        "the silent one had the rest of its time"
    );
}

#[test]
fn l4_a_lost_registration_is_said_once_and_never_renewed_again() {
    let mut leases = leases(1);
    assert_eq!(lost(&run(&mut leases, 0, 9_000, GOOD)), [4_400]);
    assert_eq!(leases.confirmed(&[heartbeat(0, 9, 8_900)]), []);
    leases.register(&node(0), RegistrationId(0), BootTime(9_000));
    assert_eq!(leases.confirmed(&[heartbeat(0, 10, 9_000)]), [], "the same registration does not come back");
    assert_eq!(leases.condition(&node(0)), Some(LeaseCondition::Expired));
    leases.register(&node(0), RegistrationId(1), BootTime(9_000));
    assert_eq!(leases.condition(&node(0)), Some(LeaseCondition::Ready));
}

#[test]
fn l5_many_late_nodes_of_an_ill_leader_are_held_for_one_more_grace_and_no_longer() {
    let mut braked = leases(10);
    run(&mut braked, 0, 100, GOOD);
    let receipts: Vec<_> = (4..10).map(|n| heartbeat(n, 1, 100)).collect();
    braked.confirmed(&receipts);
    let mut events = Vec::new();
    for at in (200..9_000).step_by(100) {
        braked.confirmed(&(4..10).map(|n| heartbeat(n, 1, at)).collect::<Vec<_>>());
        events.extend(braked.tick(BootTime(at), ILL).into_iter().map(|event| (at, event)));
    }
    let brake = LeaseEvent::Braked { late: 4, of: 10, until: BootTime(4_400 + G) };
    assert!(events.contains(&(4_400, brake)), "{events:?}");
    assert_eq!(lost(&events), [8_800; 4]);
}

#[test]
fn l5_few_late_nodes_or_a_healthy_leader_are_not_held() {
    let mut few = leases(2);
    assert_eq!(lost(&run(&mut few, 0, 5_000, ILL)), [4_400, 4_400]);
    let mut healthy = leases(10);
    assert_eq!(lost(&run(&mut healthy, 0, 5_000, GOOD)).len(), 10);
}

/// A clock that runs at `rate` parts per 100,000 of true time and started at `offset`.
#[derive(Clone, Copy, Debug)]
struct Clock {
    rate: u64,
    offset: u64,
}

impl Clock {
    fn at(self, true_us: u64) -> BootTime {
        BootTime(self.offset + true_us * self.rate / 100_000 / 1_000)
    }
    /// The true time, in microseconds, at which the clock shows `time`, rounded down: δ covers that.
    fn when(self, time: BootTime) -> u64 {
        (time.0 - self.offset) * 1_000 * 100_000 / self.rate
    }
}

fn clock() -> impl Strategy<Value = Clock> {
    // ρ = 0.4 % on each side.
    (99_600u64..=100_400, 0u64..1_000_000_000).prop_map(|(rate, offset)| Clock { rate, offset })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// True time against true time, for any delays, any order of answers, and a succession of leaders where each one
    /// is elected after the last round that its predecessor had confirmed.
    #[test]
    fn invariant_25_the_agents_deadline_is_never_after_the_leaders_expiry(
        agent_clock in clock(),
        leader_clocks in prop::collection::vec(clock(), 1..4),
        beats in prop::collection::vec((0u64..3_000_000, 0u64..4_000_000, 0u64..4_000_000, any::<bool>()), 1..40),
    ) {
        let timers = Timers::of(Profile::Lan);
        let mut agent = AgentLease::new(timers);
        let mut leaders = leader_clocks.into_iter();
        let mut clock = leaders.next().expect("at least one");
        let only = [(node(0), RegistrationId(0))];
        let mut incarnation = 1;
        let mut leases = LeaderLeases::new(timers, incarnation, clock.at(0), only.clone());
        let (mut now, mut leader_now) = (0u64, 0u64);
        for (seq, (pause, travel, confirm, succeed)) in (1u64..).zip(beats) {
            now += pause;
            agent.sent(seq, agent_clock.at(now));
            let received = (now + travel).max(leader_now);
            let receipt = heartbeat(0, seq, clock.at(received).0);
            let grants = leases.confirmed(&[receipt]);
            leader_now = received;
            for grant in grants {
                agent.granted(grant.ack_seq, timers.lease_ms, incarnation);
            }
            if let Some(next) = succeed.then(|| leaders.next()).flatten() {
                leader_now += confirm;
                clock = next;
                incarnation += 1;
                leases = LeaderLeases::new(timers, incarnation, clock.at(leader_now), only.clone());
            }
            if let (Some(deadline), Some(expiry)) = (agent.deadline(), leases.expiry(&node(0))) {
                prop_assert!(agent_clock.when(deadline) <= clock.when(expiry));
            }
        }
    }
}
