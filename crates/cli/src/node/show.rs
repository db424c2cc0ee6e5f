//! `outlast node show`.

use std::collections::BTreeMap;

use outlast_proto::control::v1::{Node, NodeHealth};

use super::condition;
use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, Paint, print_one, size, time};

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// The node's name
    node: String,
}

impl Show {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let node = session.client.get_node(&self.node).await?;
        print_one(session.format, &node, || page(&node))?;
        Ok(Exit::Done)
    }
}

fn page(node: &Node) -> String {
    let labels: BTreeMap<_, _> = node.labels.iter().collect();
    let labels: Vec<_> = labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    let custom: BTreeMap<_, _> = node.custom.iter().collect();
    let free = |name: &str| node.custom_free.get(name).copied().unwrap_or(0);
    let custom: Vec<_> =
        custom.into_iter().map(|(name, all)| format!("{name}: {} of {all}", free(name))).collect();
    let mut columns = Columns::without_header();
    columns.pair("name", &node.id);
    columns.pair("condition", Paint::stdout().state(&condition(node)));
    columns.pair("suspect because", &node.suspect_reason);
    columns.pair("quarantined", &node.quarantined);
    columns.pair("address", &node.address);
    columns.pair("data address", &node.data_address);
    columns.pair("failure domain", &node.failure_domain);
    columns.pair("labels", labels.join(", "));
    columns.pair("free cpus", format!("{} of {}", node.cpus_free, node.cpus));
    columns.pair("free memory", format!("{} of {}", size(node.memory_free_bytes), size(node.memory_bytes)));
    columns.pair("free gpus", format!("{} of {}", node.gpus_free, node.gpus));
    columns.pair("free custom", custom.join(", "));
    columns
        .pair("can fence", if node.cgroup_fence { "yes, by cgroup" } else { "no: takes no exclusive job" });
    if let Some(health) = &node.health {
        pair_health(&mut columns, health);
    }
    columns.pair("workers", node.workers.join(", "));
    columns.pair("registered", time(node.registered_at));
    columns.pair("lost", time(node.lost_at));
    columns.pair("boot", &node.boot_id);
    columns.pair("disk", &node.disk_id);
    columns.finish()
}

fn pair_health(columns: &mut Columns, health: &NodeHealth) {
    let NodeHealth {
        disk_canary_age_s,
        loop_lag_s,
        disk_free_bytes,
        disk_size_bytes,
        gpu_error,
        network_bytes_per_s,
        network_error,
    } = health;
    if *disk_size_bytes > 0 {
        columns.pair("free disk", format!("{} of {}", size(*disk_free_bytes), size(*disk_size_bytes)));
    }
    columns.pair("last disk write", format!("{disk_canary_age_s:.1} s ago"));
    columns.pair("agent's delay", format!("{loop_lag_s:.2} s"));
    columns.pair("gpu error", gpu_error);
    if *network_bytes_per_s > 0 {
        columns.pair("slowest peer tried", format!("{}/s", size(*network_bytes_per_s)));
    }
    columns.pair("data network", network_error);
}
