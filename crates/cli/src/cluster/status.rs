//! `outlast cluster status`.

use outlast_proto::control::v1::{ClusterStatusResponse, LogDisk};

use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, Paint, print_one, talk};

#[derive(Debug, clap::Args)]
pub(crate) struct Status {}

impl Status {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let status = session.client.cluster_status().await?;
        tell(&session, &status)?;
        Ok(Exit::Done)
    }
}

/// Prints a status, and what is wrong beside it.
pub(super) fn tell(session: &Session, status: &ClusterStatusResponse) -> Result<(), Problem> {
    print_one(session.format, status, || page(status))?;
    let paint = Paint::stderr();
    status.warnings.iter().for_each(|warning| talk(&format!("{} {warning}", paint.red("warning:"))));
    Ok(())
}

/// `sync 3.1 ms (p99), 40 ms beside checkpoints (p99.9)`
fn log_disk(disk: &LogDisk) -> String {
    if disk.hangs {
        return "does not answer".to_owned();
    }
    let alone = format!("sync {:.1} ms (p99)", disk.sync_p99_ms);
    match disk.loaded_p999_ms {
        Some(loaded) => format!("{alone}, {loaded:.1} ms beside checkpoint-like writes (p99.9)"),
        None => alone,
    }
}

fn page(status: &ClusterStatusResponse) -> String {
    let paint = Paint::stdout();
    let leader = match (status.leader.as_str(), status.last_leader.as_str()) {
        ("", "") => "none".to_owned(),
        ("", last) => format!("none now ({last} led last)"),
        (leader, _) => leader.to_owned(),
    };
    let (ready, suspect, lost) = (status.nodes_ready, status.nodes_suspect, status.nodes_lost);
    let mut head = Columns::without_header();
    head.pair("cluster", &status.cluster_id);
    head.pair("profile", &status.profile);
    head.pair("leader", format!("{leader}, term {}", status.term));
    head.pair("applied index", status.applied_index);
    head.pair("nodes", format!("{ready} ready, {suspect} suspect, {lost} lost"));
    head.pair("jobs", format!("{} active, {} in all", status.jobs_active, status.jobs_total));
    head.pair("generation", format!("{}, feature level {}", status.generation, status.feature_level));
    head.pair("answered by", &status.answered_by);
    if let Some(disk) = &status.disk {
        head.pair("its disk", log_disk(disk));
    }
    let mut members = Columns::new(&["COORDINATOR", "ROLE", "ADDRESS", "LAG", "REACHABLE"]);
    for one in &status.coordinators {
        members.row(&[
            one.id.clone(),
            paint.state(&one.role),
            one.address.clone(),
            one.lag.to_string(),
            if one.reachable { "yes" } else { "no" }.to_owned(),
        ]);
    }
    format!("{}\n{}", head.finish(), members.finish())
}
