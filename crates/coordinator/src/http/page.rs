//! The cluster on one plain page, made on the server: works in any browser, without scripts.

use std::fmt::Write as _;

use axum::extract::State;
use axum::response::Html;
use outlast_proto::control::v1 as pb;

use crate::control_api::ControlHandler;

/// Jobs on the page; the rest is in `/v1/jobs`.
const JOBS_SHOWN: u32 = 50;

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Outlast</title>\
<meta http-equiv=\"refresh\" content=\"5\"><style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:70rem}\
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .8rem;border-bottom:1px solid #ccc;text-align:left}\
.warn{background:#fff3cd;padding:.4rem .8rem}</style></head><body><h1>Outlast</h1>";

pub(super) async fn show(State(handler): State<ControlHandler>) -> Html<String> {
    let mut page = HEAD.to_owned();
    match handler.cluster_status().await {
        Ok(status) => write_cluster(&mut page, &status),
        Err(failure) => warn(&mut page, &failure.to_string()),
    }
    match handler.list_nodes().await {
        Ok(nodes) => write_nodes(&mut page, &nodes.nodes),
        Err(failure) => warn(&mut page, &format!("nodes: {failure}")),
    }
    let request = pb::ListJobsRequest { active_only: false, limit: JOBS_SHOWN };
    match handler.list_jobs(request).await {
        Ok(jobs) => write_jobs(&mut page, &jobs.jobs),
        Err(failure) => warn(&mut page, &format!("jobs: {failure}")),
    }
    page.push_str("</body></html>\n");
    Html(page)
}

fn write_cluster(page: &mut String, status: &pb::ClusterStatusResponse) {
    for warning in &status.warnings {
        warn(page, warning);
    }
    let leader = if status.leader.is_empty() { "none now" } else { &status.leader };
    let facts = format!(
        "cluster {} · profile {} · leader {leader} · term {} · entry {} · answered by {}",
        status.cluster_id, status.profile, status.term, status.applied_index, status.answered_by
    );
    push(page, format_args!("<p>{}</p>", escape(&facts)));
    let rows = status.coordinators.iter().map(|known| {
        let reachable = if known.reachable { "yes" } else { "no" };
        [
            known.id.clone(),
            known.address.clone(),
            known.role.clone(),
            known.lag.to_string(),
            reachable.to_owned(),
        ]
    });
    write_table(page, "Coordinators", ["id", "address", "role", "behind", "answers"], rows);
}

fn write_nodes(page: &mut String, nodes: &[pb::Node]) {
    let rows = nodes.iter().map(|node| {
        let wanted = [
            (node.cordoned, "cordoned"),
            (node.draining, "draining"),
            (!node.quarantined.is_empty(), "quarantined"),
        ];
        let wanted: Vec<_> = wanted.iter().filter(|(is_so, _)| *is_so).map(|(_, word)| *word).collect();
        [
            node.id.clone(),
            node.condition.clone(),
            wanted.join(", "),
            format!("{} of {} free", node.cpus_free, node.cpus),
            format!("{} of {} free", node.gpus_free, node.gpus),
            node.workers.join(", "),
        ]
    });
    write_table(page, "Nodes", ["node", "condition", "", "cpus", "gpus", "workers"], rows);
}

fn write_jobs(page: &mut String, jobs: &[pb::JobSummary]) {
    let rows = jobs.iter().map(|job| {
        let step = if job.sealed_step == 0 { String::new() } else { job.sealed_step.to_string() };
        [
            job.id.clone(),
            job.name.clone(),
            job.kind.clone(),
            job.state.clone(),
            job.attempts.to_string(),
            step,
            job.reason.clone(),
        ]
    });
    write_table(page, "Jobs", ["id", "name", "kind", "state", "attempts", "sealed step", "reason"], rows);
}

fn write_table<const N: usize>(
    page: &mut String,
    title: &str,
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) {
    push(page, format_args!("<h2>{}</h2><table><tr>", escape(title)));
    for name in head {
        push(page, format_args!("<th>{}</th>", escape(name)));
    }
    page.push_str("</tr>");
    for row in rows {
        page.push_str("<tr>");
        for cell in row {
            push(page, format_args!("<td>{}</td>", escape(&cell)));
        }
        page.push_str("</tr>");
    }
    page.push_str("</table>");
}

fn warn(page: &mut String, text: &str) {
    push(page, format_args!("<p class=\"warn\">{}</p>", escape(text)));
}

fn push(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("writing into memory cannot fail");
}

/// Names and reasons come from users.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_users_wrote_stays_text() {
        let mut page = String::new();
        let job = pb::JobSummary { reason: "<script>\"x\"</script>".to_owned(), ..pb::JobSummary::default() };
        write_jobs(&mut page, &[job]);
        assert!(page.contains("&lt;script&gt;&quot;x&quot;") && !page.contains("<script>"), "{page}");
    }
}
