//! Cables that carry nothing, one way only, or not everything.

use anyhow::{Context, Result};

use super::carry::{Effect, Fault};
use crate::bed::Network;

type Pairs = Vec<(String, String)>;

const COORDINATOR_PORT: u16 = 7400;
/// A fifth of all packets: TCP still gets through, with pauses of seconds.
const LOSS_PER_MILLE: u32 = 200;

/// The leader hears nobody and nobody hears it; clients reach both sides.
pub(crate) async fn partition_leader(fault: &mut Fault<'_>) -> Result<Effect> {
    let leader = fault.leader().await?;
    let others = others(fault, &leader);
    let mut pairs = both_ways(&leader, &others);
    // Half of the time it keeps its agents.
    if fault.rng.chance(50) {
        pairs.extend(both_ways(&leader, &fault.bed.agents()));
    }
    let witness = (others.first().cloned().unwrap_or_default(), leader.clone());
    cut(fault, &[leader], pairs, witness).await
}

/// What the leader says is not heard, or what is said to it.
pub(crate) async fn partition_one_way(fault: &mut Fault<'_>) -> Result<Effect> {
    let leader = fault.leader().await?;
    let others = others(fault, &leader);
    let outward = fault.rng.chance(50);
    let pair = |other: &String| match outward {
        true => (leader.clone(), other.clone()),
        false => (other.clone(), leader.clone()),
    };
    let pairs: Pairs = others.iter().map(pair).collect();
    let witness = (others.first().cloned().unwrap_or_default(), leader.clone());
    cut(fault, &[leader], pairs, witness).await
}

/// Leader and one follower do not hear each other; who is between them hears both.
pub(crate) async fn partition_bridge(fault: &mut Fault<'_>) -> Result<Effect> {
    let leader = fault.leader().await?;
    let others = others(fault, &leader);
    let other = fault.rng.pick(&others).cloned().context("there is no other coordinator")?;
    let pairs = both_ways(&leader, std::slice::from_ref(&other));
    cut(fault, &[leader.clone(), other.clone()], pairs, (other, leader)).await
}

/// A node that reaches no coordinator; sometimes no other node either.
pub(crate) async fn partition_agent(fault: &mut Fault<'_>) -> Result<Effect> {
    let agents = fault.bed.agents();
    let node = fault.rng.pick(&agents).cloned().context("there is no agent")?;
    let coordinators = fault.bed.coordinators();
    let mut pairs = both_ways(&node, &coordinators);
    if fault.rng.chance(50) {
        let peers: Vec<String> = agents.into_iter().filter(|other| *other != node).collect();
        pairs.extend(both_ways(&node, &peers));
    }
    let witness = (node.clone(), coordinators.first().cloned().unwrap_or_default());
    cut(fault, &[node], pairs, witness).await
}

pub(crate) async fn packet_loss(fault: &mut Fault<'_>) -> Result<Effect> {
    let network = network(fault)?;
    let mut names: Vec<String> = fault.bed.addresses.keys().cloned().collect();
    fault.rng.shuffle(&mut names);
    names.truncate(names.len().div_ceil(2));
    network.lose(fault.planned.id, names.clone(), LOSS_PER_MILLE)?;
    fault.aim(&names);
    fault.hold(&format!("{} % of what they send is lost", LOSS_PER_MILLE / 10)).await;
    network.heal(fault.planned.id)?;
    Ok(Effect::of(true, "all is carried again"))
}

fn others(fault: &Fault<'_>, leader: &str) -> Vec<String> {
    fault.bed.coordinators().into_iter().filter(|name| name != leader).collect()
}

fn both_ways(one: &str, others: &[String]) -> Pairs {
    let there = others.iter().map(|other| (one.to_owned(), other.clone()));
    let back = others.iter().map(|other| (other.clone(), one.to_owned()));
    there.chain(back).collect()
}

fn network<'a>(fault: &Fault<'a>) -> Result<&'a Network> {
    fault.bed.network.as_ref().context("there are no namespaces")
}

/// It held when the witness, a pair that must not reach each other, did not in the middle of it.
async fn cut(
    fault: &mut Fault<'_>,
    targets: &[String],
    pairs: Pairs,
    witness: (String, String),
) -> Result<Effect> {
    let network = network(fault)?;
    let words: Vec<String> = pairs.iter().map(|(from, to)| format!("{from}→{to}")).collect();
    network.block(fault.planned.id, pairs)?;
    let held = tokio::task::block_in_place(|| !network.connects(&witness.0, &witness.1, COORDINATOR_PORT));
    fault.aim(targets);
    fault.hold(&words.join(" ")).await;
    network.heal(fault.planned.id)?;
    Ok(Effect::of(held, if held { "it held" } else { "a connection came through" }))
}
